//! Who an agent is: a key pair, known to others by its fingerprint, as in SSH.

use std::fmt;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};

const KEY_FILE: &str = "key.pem";
const CERTIFICATE_FILE: &str = "certificate.pem";
const PREFIX: &str = "sha256:";

/// The SHA-256 of a public key (its SubjectPublicKeyInfo), written
/// `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of the key in `certificate`, or `None` if it is not a
    /// certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
        let digest = Sha256::digest(parsed.subject_public_key_info());
        Some(Self(digest.into()))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not a fingerprint; it is the last word that `pacer keygen` prints \
                 on the other host (sha256: and 64 hexadecimal digits)"
            )
        };
        let digits = text.strip_prefix(PREFIX).unwrap_or(text);
        if digits.len() != 64 || !digits.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            let pair = &digits[2 * index..2 * index + 2];
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

/// A key pair and the self-signed certificate that carries its public half.
#[derive(Debug)]
pub struct Identity {
    /// The certificate shown to the peer.
    pub certificate: CertificateDer<'static>,
    /// The private key.
    pub key: PrivateKeyDer<'static>,
    /// What the peer pins.
    pub fingerprint: Fingerprint,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read or written.
    #[error("{path}", path = .0.display())]
    File(PathBuf, #[source] std::io::Error),
    /// The directory has no identity yet.
    #[error("no identity in {path}; make one with `pacer keygen --out {path}`", path = .0.display())]
    Missing(PathBuf),
    /// `keygen` never overwrites a key.
    #[error("{path} is there already; a new identity needs a new directory (peers pin the old one)", path = .0.display())]
    Exists(PathBuf),
    /// Others on the host could read the key.
    #[error("{path} may be read by others (mode {mode:o}); make it `chmod 600 {path}`", path = .path.display())]
    TooOpen {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not what it should be.
    #[error("{path} does not hold a {what} in PEM form", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The key could not be made.
    #[error("the key could not be made")]
    Generate(#[from] rcgen::Error),
}

impl Identity {
    /// Makes an identity in `directory`, which is made if it is not there.
    /// The key's file has mode 0600.
    ///
    /// # Errors
    ///
    /// If one is there already, or a file cannot be written.
    pub fn generate(directory: &Path) -> Result<Self, IdentityError> {
        let key_path = directory.join(KEY_FILE);
        if key_path.exists() {
            return Err(IdentityError::Exists(key_path));
        }
        let made = rcgen::generate_simple_self_signed(vec!["pacer".to_owned()])?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| IdentityError::File(directory.to_owned(), error))?;
        write_new(&key_path, &made.signing_key.serialize_pem(), 0o600)?;
        write_new(&directory.join(CERTIFICATE_FILE), &made.cert.pem(), 0o644)?;
        Self::load(directory)
    }

    /// Reads the identity that [`Identity::generate`] made in `directory`.
    ///
    /// # Errors
    ///
    /// If it is missing, unreadable, or readable by others.
    pub fn load(directory: &Path) -> Result<Self, IdentityError> {
        let key_path = directory.join(KEY_FILE);
        let certificate_path = directory.join(CERTIFICATE_FILE);
        let metadata = match fs::metadata(&key_path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(IdentityError::Missing(directory.to_owned()));
            }
            Err(error) => return Err(IdentityError::File(key_path, error)),
        };
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::TooOpen {
                path: key_path,
                mode,
            });
        }
        let unreadable = |path: &Path, what| IdentityError::Unreadable {
            path: path.to_owned(),
            what,
        };
        let key = PrivateKeyDer::from_pem_file(&key_path)
            .map_err(|_| unreadable(&key_path, "private key"))?;
        let certificate = CertificateDer::from_pem_file(&certificate_path)
            .map_err(|_| unreadable(&certificate_path, "certificate"))?;
        let fingerprint = Fingerprint::of(&certificate)
            .ok_or_else(|| unreadable(&certificate_path, "certificate"))?;
        Ok(Self {
            certificate,
            key,
            fingerprint,
        })
    }
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), IdentityError> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .map_err(|error| IdentityError::File(path.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_back_as_made() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("identity");
        let made = Identity::generate(&directory).unwrap();
        let read = Identity::load(&directory).unwrap();
        assert_eq!(made.fingerprint, read.fingerprint);
        assert_eq!(made.fingerprint.to_string().parse(), Ok(made.fingerprint));
        assert!(matches!(
            Identity::generate(&directory),
            Err(IdentityError::Exists(_))
        ));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let home = tempfile::tempdir().unwrap();
        Identity::generate(home.path()).unwrap();
        let key = home.path().join(KEY_FILE);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Identity::load(home.path()).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_missing_identity_names_the_remedy() {
        let home = tempfile::tempdir().unwrap();
        let error = Identity::load(home.path()).unwrap_err();
        assert!(error.to_string().contains("pacer keygen"), "{error}");
    }

    #[test]
    fn fingerprints_that_are_none_are_refused() {
        for text in [
            "",
            "sha256:",
            "sha256:12",
            "ünïcödeünïcödeünïcödeünïcödeünïcödeünïcödeünïcöde",
        ] {
            assert!(text.parse::<Fingerprint>().is_err(), "{text}");
        }
    }
}
