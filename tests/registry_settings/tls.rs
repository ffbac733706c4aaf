//! A TLS server in front of another server, which looks at the certificates that its clients show.

use std::sync::{Arc, Mutex};
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// An authority, and what it vouches for.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut parameters = CertificateParams::new([]).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for `name` and its key, both in PEM.
    pub(crate) fn issue(&self, name: &str) -> (String, String) {
        let (certificate, key) = self.certify(name);
        (certificate.pem(), key.serialize_pem())
    }

    fn certify(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new([name.to_owned()]).unwrap();
        (parameters.signed_by(&key, &self.0).unwrap(), key)
    }
}

/// What a server wants to see.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Wants {
    /// A certificate of its authority, or nobody is let in.
    Certificate,
    /// Nothing; what is shown is looked at.
    Nothing,
}

pub(crate) struct TlsServer {
    host: String,
    shown: Arc<Mutex<Vec<bool>>>,
}

impl TlsServer {
    /// A server for 127.0.0.1 whose certificate is `authority`'s, in front of the plain server `target`.
    pub(crate) fn before(target: &str, authority: &Authority, wants: Wants) -> Self {
        let (certificate, key) = authority.certify("127.0.0.1");
        let mut roots = RootCertStore::empty();
        roots.add(authority.0.der().clone()).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let verifier = match wants {
            Wants::Certificate => verifier,
            Wants::Nothing => verifier.allow_unauthenticated(),
        };
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let shown: Arc<Mutex<Vec<bool>>> = Arc::default();
        let (record, target) = (Arc::clone(&shown), target.to_owned());
        // It ends with the process.
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                while let Ok((connection, _)) = listener.accept().await {
                    let (acceptor, record, target) = (acceptor.clone(), Arc::clone(&record), target.clone());
                    tokio::spawn(async move {
                        // A client that does not come in is not this server's concern.
                        let Ok(mut client) = acceptor.accept(connection).await else { return };
                        record.lock().unwrap().push(client.get_ref().1.peer_certificates().is_some());
                        let mut server = TcpStream::connect(target).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    });
                }
            });
        });
        Self { host, shown }
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// For every connection, whether the client showed a certificate.
    pub(crate) fn shown(&self) -> Vec<bool> {
        self.shown.lock().unwrap().clone()
    }
}
