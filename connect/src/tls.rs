//! TLS for clients: rustls on ring, with certificates from files or from the system.
//!
//! Verification is switched off only where a user asks for it by name. All files are read when a
//! connection is configured, and a file at fault is named.

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_engine::connector::ConnectorError;

/// How far a server's certificate is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Its chain and its name.
    #[default]
    Full,
    /// Its chain, not its name.
    Chain,
    /// Not at all: anyone in between can read and change everything.
    Nothing,
}

/// What a client trusts, and who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// How far the server's certificate is checked.
    pub verify: Verify,
    /// PEM file of the authorities to trust; the system's own if `None`.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client's certificate chain.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client's private key (PKCS#8, PKCS#1 or SEC1, not encrypted).
    pub key_file: Option<PathBuf>,
}

/// A rustls configuration of these options.
///
/// # Errors
/// `Reconfigure`: a file that cannot be read or holds something else, a certificate without its
/// key, no authority at all.
pub fn client_config(options: &TlsOptions) -> Result<ClientConfig, ConnectorError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| ConnectorError::fatal(format!("TLS cannot be set up: {e}")))?;
    let builder = match options.verify {
        Verify::Full => builder.with_root_certificates(roots(options.ca_file.as_deref())?),
        Verify::Chain => {
            let roots = Arc::new(roots(options.ca_file.as_deref())?);
            let chain = WebPkiServerVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|e| ConnectorError::reconfigure(format!("TLS authorities: {e}")))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyName(chain)))
        }
        Verify::Nothing => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        }
    };
    match (&options.cert_file, &options.key_file) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            let private = PrivateKeyDer::from_pem_file(key)
                .map_err(|e| unreadable(key, "private key", &e))?;
            builder.with_client_auth_cert(chain, private).map_err(|e| {
                let (cert, key) = (cert.display(), key.display());
                let message = format!("the key {key} does not fit the certificate {cert}: {e}");
                ConnectorError::reconfigure(message)
            })
        }
        _ => Err(ConnectorError::reconfigure(
            "a client certificate needs both its certificate file and its key file",
        )),
    }
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, ConnectorError> {
    let mut store = RootCertStore::empty();
    if let Some(file) = ca_file {
        for certificate in certificates(file)? {
            store.add(certificate).map_err(|e| unreadable(file, "certificate", &e))?;
        }
        return Ok(store);
    }
    let native = rustls_native_certs::load_native_certs();
    // One broken file among the system's hundreds is no reason not to connect.
    store.add_parsable_certificates(native.certs);
    if store.is_empty() {
        return Err(ConnectorError::reconfigure("this system has no TLS authorities")
            .hint("install ca-certificates, or name the server's CA file in the table's options"));
    }
    Ok(store)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectorError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let found: Vec<_> = read.map_err(|e| unreadable(file, "certificate", &e))?;
    if found.is_empty() {
        let message = format!("{} holds no certificate in PEM form", file.display());
        return Err(ConnectorError::reconfigure(message));
    }
    Ok(found)
}

fn unreadable(file: &Path, what: &str, error: &dyn std::fmt::Display) -> ConnectorError {
    ConnectorError::reconfigure(format!("cannot read the {what} in {}: {error}", file.display()))
}

/// Checks the chain and lets any name pass.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let checked =
            self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match checked {
            // The name is checked last, so everything else was right.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Accepts any certificate; the handshake's signatures are still checked.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_at_fault_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "no certificate").unwrap();
        let missing = folder.path().join("missing.pem");
        let message = |options: &TlsOptions| client_config(options).unwrap_err().message;

        let ca = |file: &Path| TlsOptions { ca_file: Some(file.into()), ..TlsOptions::default() };
        assert!(message(&ca(&empty)).contains("empty.pem holds no certificate"));
        assert!(message(&ca(&missing)).contains("missing.pem"));
        let half =
            TlsOptions { verify: Verify::Nothing, cert_file: Some(empty), ..TlsOptions::default() };
        assert!(message(&half).contains("needs both"));
    }

    #[test]
    fn no_authority_is_needed_where_nothing_is_checked() {
        let options = TlsOptions { verify: Verify::Nothing, ..TlsOptions::default() };
        assert!(client_config(&options).is_ok());
    }
}
