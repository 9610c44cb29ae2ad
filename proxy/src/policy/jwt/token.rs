//! The three parts of a token in JWS compact serialization (RFC 7515 §7.1), read strictly: what two readers could take for two
//! different things is no token.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::Reason;

/// The longest token that is looked at, bytes.
const MAX: usize = 64 * 1024;

/// A token that was read and not verified.
#[derive(Debug)]
pub struct Token<'t> {
    /// `alg`: which algorithm it claims to use.
    pub algorithm: String,
    /// `kid`: which key it claims to be signed with.
    pub key_id: Option<String>,
    /// The claims.
    pub payload: Value,
    /// The claims as they came, base64url.
    pub encoded_payload: &'t str,
    /// What is signed: header, dot, payload.
    pub signed: &'t str,
    /// The signature, base64url.
    pub signature: &'t str,
    /// `iss`.
    pub issuer: Option<String>,
    /// `exp`, seconds since 1970.
    pub expires: Option<u64>,
    /// `nbf`, seconds since 1970.
    pub not_before: Option<u64>,
}

impl<'t> Token<'t> {
    /// Reads a token. Headers that name keys or places of keys (`jwk`, `jku`, `x5c`, `x5u`) have no meaning here.
    ///
    /// # Errors
    /// [`Reason::JwtMalformed`].
    pub fn parse(text: &'t str) -> Result<Self, Reason> {
        Self::read(text).ok_or(Reason::JwtMalformed)
    }

    fn read(text: &'t str) -> Option<Self> {
        if text.len() > MAX {
            return None;
        }
        let (signed, signature) = text.rsplit_once('.')?;
        let (encoded_header, encoded_payload) = signed.split_once('.')?;
        if encoded_payload.contains('.') {
            return None;
        }
        BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?;
        let header = object(encoded_header)?;
        // RFC 7515 §4.1.11: whoever does not understand an extension that is critical must refuse. None is understood here.
        if header.get("crit").is_some() {
            return None;
        }
        let payload = object(encoded_payload)?;
        let token = Self {
            algorithm: header.get("alg")?.as_str()?.to_owned(),
            key_id: string(&header, "kid")?,
            encoded_payload,
            signed,
            signature,
            issuer: string(&payload, "iss")?,
            expires: seconds(&payload, "exp")?,
            not_before: seconds(&payload, "nbf")?,
            payload,
        };
        let (_, _) = (string(&token.payload, "sub")?, seconds(&token.payload, "iat")?);
        token.audiences()?;
        Some(token)
    }

    /// `sub`.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.payload.get("sub")?.as_str()
    }

    /// `aud`: one text or a list. None when it is something else.
    #[must_use]
    pub fn audiences(&self) -> Option<Vec<&str>> {
        match self.payload.get("aud") {
            None => Some(Vec::new()),
            Some(Value::String(one)) => Some(vec![one]),
            Some(Value::Array(list)) => list.iter().map(Value::as_str).collect(),
            Some(_) => None,
        }
    }
}

/// A JSON object in base64url.
fn object(encoded: &str) -> Option<Value> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(encoded).ok()?;
    let Unique(value) = serde_json::from_slice(&bytes).ok()?;
    value.is_object().then_some(value)
}

/// An optional text. The outer None is for a value that is none.
#[expect(clippy::option_option, reason = "absent and wrong are two things")]
fn string(object: &Value, name: &str) -> Option<Option<String>> {
    object.get(name).map_or(Some(None), |value| value.as_str().map(|text| Some(text.to_owned())))
}

/// An optional NumericDate (RFC 7519 §2), whole seconds. The outer None is for a value that is none.
#[expect(clippy::option_option, reason = "absent and wrong are two things")]
fn seconds(object: &Value, name: &str) -> Option<Option<u64>> {
    let Some(value) = object.get(name) else { return Some(None) };
    let fraction = || value.as_f64().filter(|number| *number >= 0.0).map(|number| number as u64);
    value.as_u64().or_else(fraction).map(Some)
}

/// JSON in which no object has a name twice: readers disagree on which one counts (RFC 8259 §4).
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader).map(Self)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((name, Unique(value))) = entries.next_entry::<String, _>()? {
            if map.insert(name, value).is_some() {
                return Err(A::Error::custom("a name is there twice"));
            }
        }
        Ok(Value::Object(map))
    }
}
