//! Path and host rewrites of a route that forwards, and the path rewrites of a redirect.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::HeaderName;
use http::uri::{Authority, PathAndQuery};

use super::header::{Render, ValueTemplate};
use super::matcher::PathMatch;
use super::re2::Substitution;
use crate::http::head::RequestHead;

/// A rewrite made something that is not a path or a host: the request cannot be forwarded (400).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the route's rewrite gives an invalid {0}")]
pub struct BadRewrite(pub &'static str);

/// How the path is changed. The query stays as it is.
#[derive(Debug, Clone)]
pub enum PathRewrite {
    /// `prefix_rewrite`: the matched prefix, or the whole path of a route that matches no prefix, becomes this.
    Prefix(Box<str>),
    /// `regex_rewrite`, over the path.
    Regex(Substitution),
    /// `path_rewrite`: the whole path becomes this; nothing changes when it renders to nothing.
    Whole(ValueTemplate),
}

impl PathRewrite {
    /// The new path and query of a request that `matcher` accepted; None when nothing changes.
    ///
    /// # Errors
    /// [`BadRewrite`] when the result holds bytes that no path may hold.
    pub fn apply(
        &self,
        path: &PathAndQuery,
        matcher: &PathMatch,
        headers: &HeaderMap,
        render: &mut Render<'_>,
    ) -> Result<Option<PathAndQuery>, BadRewrite> {
        let full = path.as_str();
        let only = path.path();
        let (new, rest) = match self {
            Self::Prefix(new) => (Cow::Borrowed(&**new), &full[matcher.matched_len(only)..]),
            Self::Regex(substitution) => (substitution.replace_all(only), &full[only.len()..]),
            Self::Whole(template) => match text(template, headers, render)? {
                Some(new) => (Cow::Owned(new), &full[only.len()..]),
                None => return Ok(None),
            },
        };
        // A path begins with a slash, whatever the pattern gave.
        let slash = if new.starts_with('/') || (new.is_empty() && rest.starts_with('/')) { "" } else { "/" };
        let whole = format!("{slash}{new}{rest}");
        if whole == full {
            return Ok(None);
        }
        PathAndQuery::try_from(whole).map(Some).map_err(|_| BadRewrite("path"))
    }
}

/// The text of a template, None when it is empty.
fn text(
    template: &ValueTemplate,
    headers: &HeaderMap,
    render: &mut Render<'_>,
) -> Result<Option<String>, BadRewrite> {
    let value = match template {
        ValueTemplate::Static(value) => value.clone(),
        ValueTemplate::Dynamic(text) => match render(text, headers) {
            Some(value) => value,
            None => return Ok(None),
        },
    };
    let text = value.to_str().map_err(|_| BadRewrite("value"))?;
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// How Host (`:authority`) is changed.
#[derive(Debug, Clone, Default)]
pub enum HostRewrite {
    /// Not at all.
    #[default]
    Keep,
    /// `host_rewrite_literal`.
    Literal(Authority),
    /// `auto_host_rewrite`: the hostname of the endpoint, when it has one.
    Auto,
    /// `host_rewrite_header`: the first value of a header.
    Header(HeaderName),
    /// `host_rewrite_path_regex`, over the path before it is rewritten.
    PathRegex(Substitution),
    /// `host_rewrite` with operators.
    Template(ValueTemplate),
}

impl HostRewrite {
    /// Whether the host can only be known when the endpoint is chosen.
    #[must_use]
    pub const fn needs_endpoint(&self) -> bool {
        matches!(self, Self::Auto)
    }

    /// The new host; None leaves it as it is. `endpoint` is the hostname of the endpoint, for [`HostRewrite::Auto`].
    ///
    /// # Errors
    /// [`BadRewrite`] when the result is not a host with an optional port.
    pub fn apply(
        &self,
        head: &RequestHead,
        endpoint: Option<&str>,
        render: &mut Render<'_>,
    ) -> Result<Option<Authority>, BadRewrite> {
        let new = match self {
            Self::Keep => return Ok(None),
            Self::Literal(host) => return Ok(Some(host.clone())),
            Self::Auto => endpoint.map(Cow::Borrowed),
            Self::Header(name) => match head.headers.get(name) {
                Some(value) => Some(Cow::Borrowed(value.to_str().map_err(|_| BadRewrite("host"))?)),
                None => None,
            },
            Self::PathRegex(substitution) => Some(substitution.replace_all(head.path.path())),
            Self::Template(template) => text(template, &head.headers, render)?.map(Cow::Owned),
        };
        match new {
            Some(host) if !host.is_empty() => parse_authority(&host).map(Some).ok_or(BadRewrite("host")),
            _ => Ok(None),
        }
    }
}

/// A host with an optional port, and no user information.
#[must_use]
pub fn parse_authority(text: &str) -> Option<Authority> {
    if text.contains('@') {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::matcher::tests::get;
    use crate::route::re2::Pattern;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn never(_: &str, _: &HeaderMap) -> Option<HeaderValue> {
        None
    }

    fn rewritten(rewrite: &PathRewrite, matcher: &PathMatch, path: &str) -> Option<String> {
        let path: PathAndQuery = path.parse().unwrap();
        let new = rewrite.apply(&path, matcher, &HeaderMap::new(), &mut never).unwrap();
        new.map(|p| p.as_str().to_owned())
    }

    fn prefix(text: &str) -> PathMatch {
        PathMatch::Prefix { text: text.into(), ignore_case: true }
    }

    #[test]
    fn prefix_rewrite_replaces_what_matched_and_keeps_the_query() {
        let to = |t: &str| PathRewrite::Prefix(t.into());
        let exact = PathMatch::Exact { text: "/old".into(), ignore_case: false };
        let separated = PathMatch::SeparatedPrefix { text: "/api".into(), ignore_case: false };
        let regex = PathMatch::Regex(Pattern::new("/a/.*").unwrap());
        let table: &[(PathRewrite, &PathMatch, &str, Option<&str>)] = &[
            (to("/"), &prefix("/prefix/"), "/prefix/etc?a=1", Some("/etc?a=1")),
            (to("/"), &prefix("/prefix"), "/prefix?a=/prefix", Some("/?a=/prefix")),
            (to("/new"), &prefix("/PREFIX"), "/prefix/x", Some("/new/x")),
            (to("/new"), &exact, "/old?q", Some("/new?q")),
            (to("/v1"), &separated, "/api/x", Some("/v1/x")),
            (to("/whole"), &regex, "/a/b/c?d=e", Some("/whole?d=e")),
            (to("/prefix"), &prefix("/prefix"), "/prefix/x", None),
        ];
        for (rewrite, matcher, path, want) in table {
            assert_eq!(rewritten(rewrite, matcher, path).as_deref(), *want, "{rewrite:?} {path}");
        }
    }

    #[test]
    fn regex_rewrite_sees_the_path_only_and_always_gives_a_path() {
        let sub = |p: &str, r: &str| PathRewrite::Regex(Substitution::new(p, r).unwrap());
        let m = prefix("/");
        assert_eq!(rewritten(&sub("one", "two"), &m, "/one/one?x=one").as_deref(), Some("/two/two?x=one"));
        assert_eq!(rewritten(&sub("^/x(.*)$", r"\1"), &m, "/x?q=1").as_deref(), Some("/?q=1"));
        assert_eq!(rewritten(&sub("^/x/(.*)$", r"\1"), &m, "/x/y").as_deref(), Some("/y"));
        assert_eq!(rewritten(&sub("zzz", "y"), &m, "/x"), None);
        let bad = sub("x", "a b").apply(&"/x".parse().unwrap(), &m, &HeaderMap::new(), &mut never);
        assert_eq!(bad, Err(BadRewrite("path")));
    }

    #[test]
    fn whole_path_from_a_template() {
        let rewrite = PathRewrite::Whole(ValueTemplate::Dynamic("/p%REQ(x)%".into()));
        let path: PathAndQuery = "/a/b?q".parse().unwrap();
        let mut render = |text: &str, _: &HeaderMap| {
            assert_eq!(text, "/p%REQ(x)%");
            Some(HeaderValue::from_static("/p/y"))
        };
        let new = rewrite.apply(&path, &prefix("/"), &HeaderMap::new(), &mut render).unwrap();
        assert_eq!(new.unwrap().as_str(), "/p/y?q");
        assert_eq!(rewrite.apply(&path, &prefix("/"), &HeaderMap::new(), &mut never), Ok(None));
    }

    #[test]
    fn host_rewrites() {
        let head = get("old.example", "/tenant.example/x?y", &[("x-host", "h.example:81"), ("x-bad", "a b")]);
        let run =
            |r: HostRewrite, endpoint| r.apply(&head, endpoint, &mut never).map(|h| h.map(|h| h.to_string()));
        let some = |s: &str| Ok(Some(s.to_owned()));
        assert_eq!(run(HostRewrite::Keep, None), Ok(None));
        assert_eq!(run(HostRewrite::Literal("l.example".parse().unwrap()), None), some("l.example"));
        assert_eq!(run(HostRewrite::Auto, Some("e.example")), some("e.example"));
        assert_eq!(run(HostRewrite::Auto, None), Ok(None));
        assert_eq!(run(HostRewrite::Header("x-host".parse().unwrap()), None), some("h.example:81"));
        assert_eq!(run(HostRewrite::Header("x-none".parse().unwrap()), None), Ok(None));
        assert_eq!(run(HostRewrite::Header("x-bad".parse().unwrap()), None), Err(BadRewrite("host")));
        let regex = HostRewrite::PathRegex(Substitution::new("^/(.+)/.+$", r"\1").unwrap());
        assert_eq!(run(regex, None), some("tenant.example"));
        assert_eq!(parse_authority("a@b"), None);
    }

    proptest! {
        #[test]
        fn a_rewrite_never_loses_the_query(path in "/[a-z/]{0,10}", query in "[a-z=&]{0,10}", new in "/[a-z]{0,4}") {
            let full = format!("{path}?{query}");
            for rewrite in [PathRewrite::Prefix(new.clone().into()), PathRewrite::Regex(Substitution::new("[a-c]+", &new).unwrap())] {
                let parsed: PathAndQuery = full.parse().unwrap();
                let out = rewrite.apply(&parsed, &prefix("/"), &HeaderMap::new(), &mut never).unwrap();
                prop_assert_eq!(out.as_ref().unwrap_or(&parsed).query(), Some(query.as_str()));
            }
        }
    }
}
