//! Header values with `%OPERATORS%`, rendered for one request.

use http::{HeaderMap, HeaderValue};

use super::context::RequestCtx;
use crate::http::head::RequestHead;
use crate::telemetry::record::AccessRecord;

/// Renders templates against a request. Static values never come here.
#[derive(Debug)]
pub struct Values<'a> {
    ctx: &'a RequestCtx,
}

impl<'a> Values<'a> {
    /// Values of the request of `ctx`.
    #[must_use]
    pub const fn new(ctx: &'a RequestCtx) -> Self {
        Self { ctx }
    }

    /// The value of `template`. `headers` are the ones being changed: `%REQ(x)%` reads them while the request is being
    /// prepared, and `%RESP(x)%` while an answer is.
    pub fn render(&mut self, template: &str, headers: &HeaderMap) -> Option<HeaderValue> {
        let format = self.ctx.downstream.worker.format(template)?;
        let mut out = Vec::with_capacity(64);
        let record = self.ctx.partial_record();
        if self.ctx.answered.is_some() {
            format.render(&record, &mut out);
        } else {
            let head = RequestHead { headers: headers.clone(), ..self.ctx.head.clone() };
            format.render(&AccessRecord { request: Some(&head), ..record }, &mut out);
        }
        HeaderValue::from_maybe_shared(bytes::Bytes::from(out)).ok()
    }
}
