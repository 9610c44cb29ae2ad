//! Header values with `%OPERATORS%`, rendered for one request.

use http::{HeaderMap, HeaderValue, StatusCode};

use super::context::RequestCtx;
use crate::telemetry::record::AccessRecord;

/// Renders templates against a request. Static values never come here.
#[derive(Debug)]
pub struct Values<'a> {
    ctx: &'a RequestCtx,
    /// Status of the answer that is being prepared.
    status: Option<StatusCode>,
}

impl<'a> Values<'a> {
    /// Values of the request of `ctx`.
    #[must_use]
    pub const fn new(ctx: &'a RequestCtx) -> Self {
        Self { ctx, status: None }
    }

    /// Values for the headers of an answer with `status`.
    #[must_use]
    pub const fn of_response(ctx: &'a RequestCtx, status: StatusCode) -> Self {
        Self { ctx, status: Some(status) }
    }

    /// The value of `template`. `headers` are the ones being changed: `%REQ(x)%` reads them while the request is being
    /// prepared, and `%RESP(x)%` while an answer is.
    pub fn render(&mut self, template: &str, headers: &HeaderMap) -> Option<HeaderValue> {
        let format = self.ctx.downstream.worker.format(template)?;
        let mut out = Vec::with_capacity(64);
        let record = self.ctx.partial_record();
        let record = if self.status.is_some() {
            AccessRecord { status: self.status, response_headers: Some(headers), ..record }
        } else {
            AccessRecord { request_headers: Some(headers), ..record }
        };
        format.render(&record, &mut out);
        HeaderValue::from_maybe_shared(bytes::Bytes::from(out)).ok()
    }
}
