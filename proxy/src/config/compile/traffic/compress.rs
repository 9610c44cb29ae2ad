//! `envoy.extensions.filters.http.compressor.v3.Compressor` and its libraries.

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use remora_xds::pb::envoy::extensions::compression::brotli::compressor::v3::Brotli;
use remora_xds::pb::envoy::extensions::compression::gzip::compressor::v3::Gzip;
use remora_xds::pb::envoy::extensions::compression::zstd::compressor::v3::Zstd;
use remora_xds::pb::envoy::extensions::filters::http::compressor::v3 as pb;
use remora_xds::pb::envoy::extensions::filters::http::compressor::v3::compressor::{
    CommonDirectionConfig, ResponseDirectionConfig,
};
use remora_xds::pb::envoy::extensions::filters::http::compressor::v3::compressor_per_route::Override as Said;

use super::flag;
use crate::config::compile::Scope;
use crate::config::compile::common::string_match;
use crate::config::compile::fields::{holds, number, refuse, unpack};
use crate::policy::overrides::Override;
use crate::route::text::{Place, StringMatch};
use crate::traffic::compress::{Coding, Compressor, MIN_LENGTH};

/// Compiles the filter. None when it has mistakes, which are in `scope.errors`.
pub(super) fn compressor(pb: &pb::Compressor, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Compressor> {
    #[expect(deprecated, reason = "the fields are read so that they can be refused")]
    let pb::Compressor {
        content_length,
        content_type,
        disable_on_etag_header,
        remove_accept_encoding_header,
        runtime_enabled,
        compressor_library,
        request_direction_config,
        response_direction_config,
        choose_first,
    } = pb;
    refuse!(
        scope, at;
        content_length, content_type, disable_on_etag_header, remove_accept_encoding_header,
        runtime_enabled, request_direction_config, choose_first,
    );
    let at_response = at.field("response_direction_config");
    let response = response_direction_config.clone().unwrap_or_default();
    let ResponseDirectionConfig {
        common_config,
        disable_on_etag_header,
        weaken_etag_on_compress,
        remove_accept_encoding_header,
        status_header_enabled,
        uncompressible_response_codes,
    } = &response;
    refuse!(scope, &at_response; status_header_enabled, uncompressible_response_codes);
    if *disable_on_etag_header && *weaken_etag_on_compress {
        let at = at_response.field("weaken_etag_on_compress");
        scope.errors.report(&at, "contradicts disable_on_etag_header").fix("remove either");
    }
    let common = common_config.clone().unwrap_or_default();
    #[expect(deprecated, reason = "content_type_matcher is newer than most files")]
    let CommonDirectionConfig { enabled, min_content_length, content_type, content_type_matcher } = &common;
    let at_common = at_response.field("common_config");
    let at_length = at_common.field("min_content_length");
    let min = number(min_content_length.as_ref(), 1..=u32::MAX, &at_length, scope);
    let matchers_at = at_common.field("content_type_matcher");
    let matchers = content_type_matcher.iter().enumerate();
    let by_matcher: Vec<_> =
        matchers.filter_map(|(i, pb)| string_match(pb, &matchers_at.index(i), scope)).collect();
    let coding = library(compressor_library.as_ref(), &at.field("compressor_library"), scope)?;
    Some(Compressor {
        coding,
        enabled: flag(enabled.as_ref()),
        min_length: min.map_or(MIN_LENGTH, u64::from),
        types: content_type
            .iter()
            .map(|kind| StringMatch::text(Place::Exact, kind, false))
            .chain(by_matcher)
            .collect(),
        not_with_etag: *disable_on_etag_header,
        weaken_etag: *weaken_etag_on_compress,
        remove_accept_encoding: *remove_accept_encoding_header,
    })
}

fn library(pb: Option<&TypedExtensionConfig>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Coding> {
    let Some(any) = pb.and_then(|pb| pb.typed_config.as_ref()) else {
        scope.errors.report(at, "is required");
        return None;
    };
    let at = at.field("typed_config");
    if holds::<Gzip>(any) {
        return gzip(&unpack(any, &at, scope)?, &at, scope);
    }
    if holds::<Brotli>(any) {
        let Brotli {
            quality,
            encoder_mode: _,
            window_bits,
            input_block_bits: _,
            chunk_size: _,
            disable_literal_context_modeling: _,
        } = unpack(any, &at, scope)?;
        let quality = number(quality.as_ref(), 0..=11, &at.field("quality"), scope);
        let window = number(window_bits.as_ref(), 10..=24, &at.field("window_bits"), scope);
        return Some(Coding::Brotli { quality: quality.unwrap_or(3), window: window.unwrap_or(18) });
    }
    if holds::<Zstd>(any) {
        let Zstd { compression_level, enable_checksum, strategy: _, dictionary, chunk_size: _ } =
            &unpack(any, &at, scope)?;
        refuse!(scope, &at; dictionary);
        let level = number(compression_level.as_ref(), 0..=22, &at.field("compression_level"), scope);
        let level = level.and_then(|level| i32::try_from(level).ok()).unwrap_or(3);
        return Some(Coding::Zstd { level, checksum: *enable_checksum });
    }
    scope
        .errors
        .report(&at, format!("`{}` is no library that is here", any.type_url))
        .fix("gzip, brotli or zstd");
    None
}

fn gzip(pb: &Gzip, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Coding> {
    let Gzip { memory_level: _, compression_level, compression_strategy: _, window_bits, chunk_size: _ } = pb;
    let level = match u32::try_from(*compression_level).ok()? {
        // DEFAULT_COMPRESSION.
        0 => 6,
        level @ 1..=9 => level,
        _ => {
            scope.errors.report(&at.field("compression_level"), "is not a value of this enumeration");
            return None;
        }
    };
    let window = number(window_bits.as_ref(), 9..=15, &at.field("window_bits"), scope);
    let window = window.and_then(|bits| u8::try_from(bits).ok()).unwrap_or(12);
    Some(Coding::Gzip { level, window })
}

/// `CompressorPerRoute`.
pub(super) fn compressor_route(
    pb: &pb::CompressorPerRoute,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Override> {
    let overrides = match &pb.r#override {
        Some(Said::Disabled(true)) => return Some(Override::Disabled),
        Some(Said::Overrides(overrides)) => overrides,
        Some(Said::Disabled(false)) | None => {
            scope.errors.report(at, "says nothing").fix("set overrides, or disabled: true");
            return None;
        }
    };
    let at = at.field("overrides");
    let pb::CompressorOverrides { response_direction_config, compressor_library } = overrides;
    refuse!(scope, &at; compressor_library);
    let said = response_direction_config.as_ref();
    let remove = said.and_then(|said| said.remove_accept_encoding_header.as_ref()).map(|remove| remove.value);
    Some(Override::Compressor(remove))
}
