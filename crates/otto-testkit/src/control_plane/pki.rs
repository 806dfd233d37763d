//! Keys and certificates of a control plane.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

/// Files in PEM form.
pub(crate) struct Pki {
    /// The authority that clients trust.
    pub(crate) ca: PathBuf,
    /// Certificate of a server on 127.0.0.1: the API server, and proxies before it.
    pub(crate) certificate: PathBuf,
    /// Its private key.
    pub(crate) key: PathBuf,
    /// Private key with which tokens of service accounts are signed.
    pub(crate) service_accounts: PathBuf,
    /// Its public key.
    pub(crate) service_accounts_public: PathBuf,
}

impl Pki {
    /// Makes all of it in `dir`.
    pub(crate) fn make(dir: &Path) -> anyhow::Result<Self> {
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        ca.distinguished_name.push(rcgen::DnType::CommonName, "control plane of a test");
        let ca_pem = ca.self_signed(&ca_key)?.pem();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate()?;
        let mut server = CertificateParams::new(vec!["localhost".to_owned(), "kubernetes.default.svc".to_owned()])?;
        server.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let certificate = server.signed_by(&key, &issuer)?.pem();
        let service_accounts = KeyPair::generate()?;
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).map(|()| path)
        };
        Ok(Self {
            ca: write("ca.crt", &ca_pem)?,
            certificate: write("server.crt", &certificate)?,
            key: write("server.key", &key.serialize_pem())?,
            service_accounts: write("service-accounts.key", &service_accounts.serialize_pem())?,
            service_accounts_public: write("service-accounts.pub", &service_accounts.public_key_pem())?,
        })
    }
}
