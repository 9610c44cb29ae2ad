//! How a message body is delimited (RFC 9112 §6). The two headers that decide it are read here and nowhere else.

use http::{HeaderValue, Method, StatusCode, Version};

use super::parse::tokens;
use crate::error::Reason;

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// After this many bytes.
    Length(u64),
    /// With the last chunk and its trailers.
    Chunked,
    /// When the connection closes; responses only.
    UntilClose,
}

/// Content-Length and Transfer-Encoding of one head, as they are found.
#[derive(Debug, Default)]
pub struct FramingHeaders {
    length: Option<u64>,
    chunked_lines: u32,
}

impl FramingHeaders {
    /// # Errors
    /// [`Reason::BadContentLength`] for anything but one number (RFC 9110 §8.6 lets a recipient accept identical
    /// repetitions; a proxy that does so forwards them to parsers that may not).
    pub fn content_length(&mut self, value: &HeaderValue) -> Result<(), Reason> {
        let digits = value.as_bytes();
        if self.length.is_some() || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(Reason::BadContentLength);
        }
        let text = std::str::from_utf8(digits).map_err(|_| Reason::BadContentLength)?;
        self.length = Some(text.parse().map_err(|_| Reason::BadContentLength)?);
        Ok(())
    }

    /// Accepts exactly `chunked`, also when the whole line is repeated (Spring sends it twice).
    ///
    /// # Errors
    /// [`Reason::BadTransferEncoding`], or [`Reason::UnsupportedTransferEncoding`] for another coding.
    pub fn transfer_encoding(&mut self, value: &HeaderValue) -> Result<(), Reason> {
        let mut codings = tokens(value.as_bytes());
        match (codings.next(), codings.next()) {
            (Some(only), None) if only.eq_ignore_ascii_case(b"chunked") => {
                self.chunked_lines += 1;
                Ok(())
            }
            (Some(first), _) if !first.eq_ignore_ascii_case(b"chunked") => {
                Err(Reason::UnsupportedTransferEncoding)
            }
            _ => Err(Reason::BadTransferEncoding),
        }
    }

    /// Whether `Transfer-Encoding: chunked` came more than once.
    #[must_use]
    pub const fn repeated_chunked(&self) -> bool {
        self.chunked_lines > 1
    }

    /// # Errors
    /// [`Reason::AmbiguousLength`] with both headers, [`Reason::BadTransferEncoding`] under HTTP/1.0.
    pub fn of_request(&self, version: Version) -> Result<Framing, Reason> {
        match (self.chunked_lines > 0, self.length) {
            (true, Some(_)) => Err(Reason::AmbiguousLength),
            (true, None) if version == Version::HTTP_10 => Err(Reason::BadTransferEncoding),
            (true, None) => Ok(Framing::Chunked),
            (false, Some(0) | None) => Ok(Framing::Empty),
            (false, Some(n)) => Ok(Framing::Length(n)),
        }
    }

    /// RFC 9112 §6.3.
    ///
    /// # Errors
    /// As [`Self::of_request`].
    pub fn of_response(
        &self,
        method: &Method,
        status: StatusCode,
        version: Version,
    ) -> Result<Framing, Reason> {
        let framing = match (self.chunked_lines > 0, self.length) {
            (true, Some(_)) => return Err(Reason::AmbiguousLength),
            (true, None) if version == Version::HTTP_10 => return Err(Reason::BadTransferEncoding),
            (true, None) => Framing::Chunked,
            (false, Some(n)) => Framing::Length(n),
            (false, None) => Framing::UntilClose,
        };
        let bodiless = method == Method::HEAD
            || status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED;
        Ok(if bodiless || framing == Framing::Length(0) { Framing::Empty } else { framing })
    }
}
