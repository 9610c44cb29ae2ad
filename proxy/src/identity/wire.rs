//! Istio's certificate service (`security/v1alpha1/ca.proto`): what it takes to ask for a certificate.

use prost::Message;

/// The method.
pub(super) const CREATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// `IstioCertificateRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CertificateRequest {
    /// PEM.
    #[prost(string, tag = "1")]
    pub(super) csr: String,
    /// Seconds; 0 leaves it to the CA.
    #[prost(int64, tag = "3")]
    pub(super) validity_duration: i64,
}

/// `IstioCertificateResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CertificateResponse {
    /// PEM: the leaf, those above it, the root last.
    #[prost(string, repeated, tag = "1")]
    pub(super) cert_chain: Vec<String>,
}
