//! Keys that sign bundles: Ed25519.

use std::fmt;
use std::str::FromStr;

use ed25519_compact::{KeyPair, Seed, Signature};
use thiserror::Error;

/// Bytes of a public key, and of the secret that a signing key is made from.
pub const KEY_BYTES: usize = 32;
/// Bytes of a signature.
pub(crate) const SIGNATURE_BYTES: usize = 64;

/// The public half of a key: names the signer of a bundle. Its text is 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublicKey(pub [u8; KEY_BYTES]);

/// A text that is no public key.
#[derive(Debug, Error)]
#[error("a public key is 64 hexadecimal digits; kiln key --public FILE.pem prints it")]
pub struct NoPublicKey;

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for PublicKey {
    type Err = NoPublicKey;

    fn from_str(text: &str) -> Result<PublicKey, NoPublicKey> {
        let mut key = [0; KEY_BYTES];
        let digits = text.as_bytes();
        if digits.len() != 2 * KEY_BYTES || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(NoPublicKey);
        }
        for (byte, at) in key.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| NoPublicKey)?;
        }
        Ok(PublicKey(key))
    }
}

impl PublicKey {
    /// Whether the holder of this key's secret has signed `message`.
    pub(crate) fn has_signed(&self, message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        let key = ed25519_compact::PublicKey::new(self.0);
        key.verify(message, &Signature::new(*signature)).is_ok()
    }
}

/// A key that signs bundles.
pub struct SigningKey(KeyPair);

impl SigningKey {
    /// The key of a secret, which is 32 random bytes; `None` for zeros.
    pub fn from_secret(secret: [u8; KEY_BYTES]) -> Option<SigningKey> {
        KeyPair::try_from_seed(Seed::new(secret)).ok().map(SigningKey)
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(*self.0.pk)
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        *self.0.sk.sign(message, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
    }

    /// RFC 8032, section 7.1, tests 1 to 3: secret, public key, message, signature.
    const RFC_8032: [[&str; 4]; 3] = [
        [
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701c\
             f9b46bd25bf5f0595bbe24655141438e7a100b",
        ],
        [
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0\
             f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ],
        [
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f76098\
             4dc6594a7c15e9716ed28dc027beceea1ec40a",
        ],
    ];

    #[test]
    fn signatures_are_those_of_rfc_8032() {
        for [secret, public, message, signature] in RFC_8032 {
            let key = SigningKey::from_secret(bytes(secret)).unwrap();
            assert_eq!(key.public().to_string(), public);
            let message = &bytes::<2>(&format!("{message:0<4}"))[..message.len() / 2];
            assert_eq!(key.sign(message), bytes::<SIGNATURE_BYTES>(signature));
            assert!(key.public().has_signed(message, &bytes(signature)));
            assert!(!key.public().has_signed(b"another", &bytes(signature)));
        }
    }

    #[test]
    fn zeros_are_no_secret() {
        assert!(SigningKey::from_secret([0; KEY_BYTES]).is_none());
    }

    #[test]
    fn a_public_key_is_its_text() {
        let text = RFC_8032[0][1];
        assert_eq!(text.parse::<PublicKey>().unwrap().to_string(), text);
        assert_eq!(text.to_uppercase().parse::<PublicKey>().unwrap().to_string(), text);
        for wrong in ["", "d75a", &text[1..], &format!("{text}0"), &text.replace('d', "é")] {
            assert!(wrong.parse::<PublicKey>().is_err(), "{wrong}");
        }
    }
}
