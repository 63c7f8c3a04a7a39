//! Machines of their own: network namespaces. Needs root.
//!
//! Each has an address for clients, who are in the namespace of the test, and one for the other machines. Between the machines is a
//! bridge, from which each can be cut off: then packets vanish, and no connection is closed.

use std::net::IpAddr;

use tokio::process::Command;

use super::output_of;

/// Where a server or a node runs.
#[derive(Debug, Clone)]
pub struct Host {
    /// The address that clients reach it at.
    pub ip: IpAddr,
    /// The address that other machines reach it at.
    pub inner: IpAddr,
    namespace: Option<String>,
}

impl Host {
    /// The machine of the test.
    pub fn here(ip: &str) -> Self {
        let ip = ip.parse().unwrap();
        Self { ip, inner: ip, namespace: None }
    }

    /// A program that runs there.
    pub fn command(&self, program: &str) -> Command {
        let Some(namespace) = &self.namespace else { return Command::new(program) };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, program]);
        command
    }
}

/// Three machines, and what is between them. Ends with this.
pub struct Network {
    bridge: String,
    pub hosts: [Host; 3],
}

/// Runs `ip` with these arguments, which hold no blanks.
fn ip(arguments: &str) -> Result<String, String> {
    output_of("ip", &arguments.split(' ').collect::<Vec<_>>())
}

impl Network {
    /// Fails with the reason if this machine has no namespaces, or this account may not make them.
    pub fn new() -> Result<Self, String> {
        let process = std::process::id();
        let bridge = format!("x0-{process}-bridge");
        ip(&format!("netns add {bridge}"))?;
        let hosts = [0, 1, 2].map(|n| Host {
            ip: format!("198.18.{}.{}", process % 256, 4 * n + 2).parse().unwrap(),
            inner: format!("198.19.0.{}", n + 1).parse().unwrap(),
            namespace: Some(format!("x0-{process}-{n}")),
        });
        let network = Self { bridge: bridge.clone(), hosts };
        let run = |arguments: String| drop(ip(&arguments).unwrap());
        run(format!("-n {bridge} link add hub type bridge"));
        run(format!("-n {bridge} link set hub up"));
        for (n, host) in network.hosts.iter().enumerate() {
            let (Host { ip, inner, .. }, namespace) = (host, host.namespace.as_ref().unwrap());
            let (outer, gateway) =
                (format!("x0v{process}n{n}"), format!("198.18.{}.{}", process % 256, 4 * n + 1));
            run(format!("netns add {namespace}"));
            run(format!("-n {namespace} link set lo up"));
            run(format!("link add {outer} type veth peer name clients netns {namespace}"));
            run(format!("addr add {gateway}/30 dev {outer}"));
            run(format!("link set {outer} up"));
            run(format!("-n {namespace} addr add {ip}/30 dev clients"));
            run(format!("-n {namespace} link set clients up"));
            run(format!("-n {bridge} link add port{n} type veth peer name machines netns {namespace}"));
            run(format!("-n {bridge} link set port{n} up"));
            run(format!("-n {namespace} addr add {inner}/24 dev machines"));
            run(format!("-n {namespace} link set machines up"));
            network.heal(n);
        }
        Ok(network)
    }

    /// Cuts a machine off from the others. Clients reach it.
    pub fn cut(&self, host: usize) {
        ip(&format!("-n {} link set port{host} nomaster", self.bridge)).unwrap();
    }

    /// Connects it again.
    pub fn heal(&self, host: usize) {
        ip(&format!("-n {} link set port{host} master hub", self.bridge)).unwrap();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let namespaces = self.hosts.iter().filter_map(|host| host.namespace.as_ref());
        for namespace in namespaces.chain([&self.bridge]) {
            // The test may have failed while it was being made.
            _ = ip(&format!("netns delete {namespace}"));
        }
    }
}
