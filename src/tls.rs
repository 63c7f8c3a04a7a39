//! TLS by rustls: the certificate of the server, which may change while it runs, and the trust of our clients.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::crypto::{
    CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::metrics;
use crate::reload::{Current, Loaded, SetupError, read_file, watch_files};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A client that trusts the roots of the system, or those in `SSL_CERT_FILE`. Where there are none, as in an empty
/// container, it trusts the roots that browsers trust.
///
/// # Errors
/// The configuration cannot be built.
pub(crate) fn client_config() -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if usable == 0 {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let versions = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    Ok(versions.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth())
}

/// A client that trusts the certificates in this file: those of CAs, and of servers.
///
/// # Errors
/// The file holds no certificate.
pub(crate) fn client_config_of(file: &Path) -> Result<ClientConfig, String> {
    let invalid = |reason: &dyn std::fmt::Display| format!("--ca {}: {reason}", file.display());
    let text = read_file(file).map_err(|error| invalid(&error))?;
    let trusted: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let trusted = trusted.map_err(|error| invalid(&error))?;
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(trusted.iter().cloned());
    if usable == 0 {
        return Err(invalid(&"holds no certificate (PEM)"));
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    let verifier = Arc::new(Trusted { trusted, verifier: verifier.map_err(|error| invalid(&error))? });
    client_config_with(verifier)
}

/// A client that verifies servers like this.
fn client_config_with(verifier: Arc<dyn ServerCertVerifier>) -> Result<ClientConfig, String> {
    let versions = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = versions.map_err(|error| error.to_string())?.dangerous();
    Ok(config.with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Whether a server has shown the certificate of a CA as its own. rustls has no name for this error.
pub(crate) fn is_ca_as_server(error: &CertificateError) -> bool {
    matches!(error, CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity"))
}

/// Verifies as usual, and takes a certificate that is trusted itself, also if it is that of a CA: `openssl req -x509` makes such ones, and
/// the usual rules allow a server no certificate of a CA.
#[derive(Debug)]
struct Trusted {
    trusted: Vec<CertificateDer<'static>>,
    verifier: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for Trusted {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.verifier.verify_server_cert(certificate, chain, name, ocsp, now) {
            Err(Error::InvalidCertificate(error))
                if is_ca_as_server(&error) && self.trusted.iter().any(|trusted| trusted == certificate) =>
            {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                verify_time(certificate, now)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Whether a certificate is valid now (RFC 5280 section 4.1.2.5).
fn verify_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let invalid = |error| Err(Error::InvalidCertificate(error));
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return invalid(CertificateError::BadEncoding);
    };
    let (validity, now) = (parsed.validity(), i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    if now < validity.not_before.timestamp() {
        return invalid(CertificateError::NotValidYet);
    }
    match now > validity.not_after.timestamp() {
        true => invalid(CertificateError::Expired),
        false => Ok(()),
    }
}

/// A client that accepts every certificate. Only for health checks of a server on this machine.
///
/// # Errors
/// The configuration cannot be built.
pub(crate) fn unverified_client_config() -> Result<ClientConfig, String> {
    client_config_with(Arc::new(Unverified(provider())))
}

/// Accepts every certificate. It still verifies that the server holds the key of its certificate.
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

/// The configuration of a server with the certificate in these files. The files are watched: new connections get the
/// current certificate. Call it within a tokio runtime.
///
/// # Errors
/// [`SetupError`] names the file that cannot be used, and why.
pub(crate) fn server_config(cert: &Path, key: &Path) -> Result<Current<ServerConfig>, SetupError> {
    watch_files("the certificate", vec![cert.to_owned(), key.to_owned()], |paths: &[PathBuf]| {
        let [cert, key] = paths else { unreachable!("two files were given") };
        let certified = read(cert, key)?;
        metrics::CERTIFICATE_END.store(end_of(&certified).unwrap_or_default(), Ordering::Relaxed);
        let versions = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let config = versions.map_err(|error| SetupError(error.to_string()))?.with_no_client_auth();
        let mut config = config.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Loaded::Complete(config))
    })
}

/// When the certificate itself ends, in Unix seconds.
fn end_of(certified: &CertifiedKey) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(certified.cert.first()?).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// Reads a certificate chain and its key.
fn read(cert: &Path, key: &Path) -> Result<CertifiedKey, SetupError> {
    let invalid =
        |flag: &str, path: &Path, reason: String| SetupError(format!("{flag} {}: {reason}", path.display()));
    let pem = |flag, path: &Path| read_file(path).map_err(|error| invalid(flag, path, error.to_string()));
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem("--tls-cert", cert)?).collect();
    let chain = chain.map_err(|error| invalid("--tls-cert", cert, error.to_string()))?;
    if chain.is_empty() {
        return Err(invalid("--tls-cert", cert, "holds no certificate (PEM)".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_slice(&pem("--tls-key", key)?)
        .map_err(|error| invalid("--tls-key", key, format!("no private key (PEM): {error}")))?;
    CertifiedKey::from_der(chain, private, &provider())
        .map_err(|error| invalid("--tls-key", key, format!("does not belong to the certificate: {error}")))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey as Generated, generate_simple_self_signed};
    use tempfile::TempDir;

    use super::*;

    /// A directory with `cert.pem` and `key.pem` of a new certificate.
    fn generated() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let Generated { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(dir.path().join("cert.pem"), cert.pem()).unwrap();
        std::fs::write(dir.path().join("key.pem"), signing_key.serialize_pem()).unwrap();
        dir
    }

    fn error(cert: &Path, key: &Path) -> String {
        read(cert, key).unwrap_err().0
    }

    #[test]
    fn a_certificate_and_its_key_are_read() {
        let dir = generated();
        let certified = read(&dir.path().join("cert.pem"), &dir.path().join("key.pem")).unwrap();
        assert_eq!(certified.cert.len(), 1);
        // rcgen's certificates end in the year 4096.
        assert_eq!(end_of(&certified), Some(67_090_118_400));
    }

    #[test]
    fn errors_name_the_flag_and_the_file() {
        let (dir, other) = (generated(), generated());
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let none = dir.path().join("none.pem");
        assert!(error(&none, &key).starts_with(&format!("--tls-cert {}", none.display())));
        assert!(
            error(&key, &key).contains("--tls-cert") && error(&key, &key).contains("holds no certificate")
        );
        assert!(error(&cert, &cert).contains("--tls-key") && error(&cert, &cert).contains("no private key"));
        assert!(error(&cert, &other.path().join("key.pem")).contains("does not belong to the certificate"));
    }

    #[tokio::test]
    async fn a_server_offers_http2_first() {
        let dir = generated();
        let config = server_config(&dir.path().join("cert.pem"), &dir.path().join("key.pem")).unwrap();
        assert_eq!(config.get().alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        client_config().unwrap();
        unverified_client_config().unwrap();
    }
}
