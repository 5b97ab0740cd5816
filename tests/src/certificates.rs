//! A certificate authority of a test.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// A certificate authority, and what it has signed, as files: `ca.pem`, and `server.pem` and
/// `client.pem` with their keys beside them.
pub struct Certificates {
    dir: TempDir,
}

impl Certificates {
    /// A new authority, that signs for this machine's loopback.
    pub fn new() -> Self {
        let dir = crate::temp_dir();
        let write = |name: &str, text: String| {
            std::fs::write(dir.path().join(name), text).expect("write a certificate");
        };
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        write("ca.pem", params.self_signed(&key).expect("a certificate").pem());
        let authority = Issuer::new(params, key);
        for name in ["server", "client"] {
            let key = KeyPair::generate().expect("a key");
            let names = vec!["localhost".into(), "127.0.0.1".into()];
            let params = CertificateParams::new(names).expect("parameters");
            let certificate = params.signed_by(&key, &authority).expect("a certificate");
            write(&format!("{name}.pem"), certificate.pem());
            write(&format!("{name}-key.pem"), key.serialize_pem());
        }
        Self { dir }
    }

    /// Path of a file.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}
