//! TLS by rustls: the server's certificate, which changes while it runs, and whom clients trust.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
};

use crate::reload::{Current, SetupError, watch_files};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Whom a client of ours trusts: whom the system trusts (or `SSL_CERT_FILE` names), or where it names nobody, as in an
/// empty container, whom browsers trust.
///
/// # Errors
/// Why that cannot be set up.
pub(crate) fn client_config() -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if usable == 0 {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let versions = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    Ok(versions.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth())
}

/// A client that takes whatever certificate it is shown: for asking a server on this machine how it is.
///
/// # Errors
/// Why that cannot be set up.
pub(crate) fn unverified_client_config() -> Result<ClientConfig, String> {
    let versions = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let verifier = Arc::new(Unverified(provider()));
    let config = versions.map_err(|error| error.to_string())?.dangerous();
    Ok(config.with_custom_certificate_verifier(verifier).with_no_client_auth())
}

#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The server's side, with the certificate in these files, which are watched: connections from then on get what they
/// hold. Call it within a tokio runtime.
///
/// # Errors
/// [`SetupError`] names the file that cannot be used, and why.
pub(crate) fn server_config(cert: &Path, key: &Path) -> Result<Current<ServerConfig>, SetupError> {
    watch_files("the certificate", vec![cert.to_owned(), key.to_owned()], |paths: &[PathBuf]| {
        let [cert, key] = paths else { unreachable!("two files were given") };
        let certified = read(cert, key)?;
        let versions = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let config = versions.map_err(|error| SetupError(error.to_string()))?.with_no_client_auth();
        let mut config = config.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    })
}

fn read(cert: &Path, key: &Path) -> Result<CertifiedKey, SetupError> {
    let told = |flag: &str, path: &Path, why: String| SetupError(format!("{flag} {}: {why}", path.display()));
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(cert).and_then(|all| all.collect::<Result<Vec<_>, _>>());
    let chain = chain.map_err(|error| told("--tls-cert", cert, error.to_string()))?;
    if chain.is_empty() {
        return Err(told("--tls-cert", cert, "holds no certificate (PEM)".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| told("--tls-key", key, format!("no private key (PEM): {error}")))?;
    CertifiedKey::from_der(chain, private, &provider())
        .map_err(|error| told("--tls-key", key, format!("does not belong to the certificate: {error}")))
}
