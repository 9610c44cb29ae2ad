//! Values of annotations.

use std::collections::BTreeSet;

/// `true` or `false`.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.trim() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("write \"true\" or \"false\"".into()),
    }
}

/// A list with commas: `8080,9090`, each 1 to 65535. `*` stands for all, where `all` allows it.
pub(super) fn ports(text: &str, all: bool) -> Result<Option<String>, String> {
    list(text, all, "8080,9090", |part| {
        part.parse::<u16>().is_ok_and(|port| port > 0).then(|| part.to_owned())
    })
}

/// `10.0.0.0/8,fd00::/8`; an address alone is a range of one. `*` stands for all, where `all` allows it.
pub(super) fn ranges(text: &str, all: bool) -> Result<Option<String>, String> {
    list(text, all, "10.0.0.0/8,192.168.0.0/16", |part| {
        let (address, length) = match part.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (part, None),
        };
        let address: std::net::IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            Some(text) => text.parse::<u8>().ok().filter(|length| *length <= most)?,
            None => most,
        };
        Some(format!("{address}/{length}"))
    })
}

/// `eth1,cni0`: names of interfaces, as `remora init` takes them.
pub(super) fn interfaces(text: &str) -> Result<Option<String>, String> {
    list(text, false, "eth1,cni0", |part| crate::init::interface(part).ok())
}

/// None: `*`, which is what holds anyway, or nothing where nothing means nothing.
fn list(
    text: &str,
    all: bool,
    example: &str,
    one: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, String> {
    let text = text.trim();
    match text {
        "*" if all => return Ok(None),
        "" if all => {
            return Err(
                "write \"*\" for all; to lead nothing to the sidecar, set remora.dev/interception: none"
                    .into(),
            );
        }
        "" => return Ok(None),
        _ => {}
    }
    let (mut seen, mut kept) = (BTreeSet::new(), Vec::new());
    for part in text.split(',').map(str::trim) {
        let star = if all { ", or \"*\" for all" } else { "" };
        let part =
            one(part).ok_or_else(|| format!("{part:?} is not one of them: write \"{example}\"{star}"))?;
        if seen.insert(part.clone()) {
            kept.push(part);
        }
    }
    Ok(Some(kept.join(",")))
}

/// What a [`quantity`] that was checked amounts to, to compare it with others of its kind.
pub(super) fn amount(quantity: &str) -> f64 {
    let end = quantity.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at(end);
    let number: f64 = number.parse().unwrap_or(0.0);
    let decimal = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"].iter().position(|s| *s == suffix);
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].iter().position(|s| *s == suffix);
    let power = |n: usize| i32::try_from(n).unwrap_or(0);
    match (decimal, binary) {
        (Some(n), _) => number * 1000_f64.powi(power(n) - 3),
        (_, Some(n)) => number * 1024_f64.powi(power(n) + 1),
        _ => number * 10_f64.powi(suffix[1..].parse().unwrap_or(0)),
    }
}

/// A quantity of Kubernetes (resource.Quantity): `100m`, `0.5`, `64Mi`, `1e3`.
pub(super) fn quantity(text: &str) -> Result<String, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let exponent = |rest: &str| {
        let digits = rest.strip_prefix(['+', '-']).unwrap_or(rest);
        !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
    };
    let known = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let fits = number.parse::<f64>().is_ok()
        && number.as_bytes().first().is_some_and(u8::is_ascii_digit)
        && (known.contains(&suffix) || suffix.strip_prefix(['e', 'E']).is_some_and(exponent));
    if fits { Ok(text.to_owned()) } else { Err("write a quantity such as 100m, 0.5 or 64Mi".into()) }
}

/// Reference of an image: no spaces, not empty.
pub(crate) fn image(text: &str) -> Result<String, String> {
    let text = text.trim();
    let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if fits { Ok(text.to_owned()) } else { Err("write it as registry.example/remora:1.0".into()) }
}

/// A whole number from `least` to `most`.
pub(super) fn number(text: &str, least: u16, most: u16) -> Result<u16, String> {
    let number = text.trim().parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("write a whole number from {least} to {most}"))
}

/// What `--log-level` takes, without anything that a filter never has.
pub(super) fn level(text: &str) -> Result<String, String> {
    let text = text.trim();
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"_:=,-".contains(&b);
    let well = !text.is_empty() && text.bytes().all(fits) && remora_proxy::cli::is_log_level(text);
    if well {
        Ok(text.to_owned())
    } else {
        Err("write error, warn, info, debug, or a filter such as remora_proxy::http=debug".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_normalised() {
        assert_eq!(ports("*", true), Ok(None));
        assert_eq!(ports("", false), Ok(None));
        assert_eq!(ports(" 80, 443,80 ", false).unwrap().unwrap(), "80,443");
        assert_eq!(
            ranges("10.0.0.0/8,1.2.3.4,fd00::1", true).unwrap().unwrap(),
            "10.0.0.0/8,1.2.3.4/32,fd00::1/128"
        );
        assert_eq!(interfaces("eth1").unwrap().unwrap(), "eth1");
        for wrong in ["0", "65536", "http", "80,,81", "80;81", "*,80", "-1"] {
            assert!(ports(wrong, true).is_err(), "{wrong}");
        }
        assert!(ports("", true).unwrap_err().contains("interception"));
        assert!(ports("*", false).is_err());
        for wrong in ["10.0.0.0/33", "fd00::/129", "10.0.0/8", "all", "10.0.0.0/", "10.0.0.0/-1"] {
            assert!(ranges(wrong, true).is_err(), "{wrong}");
        }
        for wrong in ["a name", "sixteen-letters-", "a/b", "eth{0}", "eth*", "-a"] {
            assert!(interfaces(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for fine in ["1", "100m", "0.5", "64Mi", "1e3", "1E-3", "2G", "5u", "1E"] {
            assert!(quantity(fine).is_ok(), "{fine}");
        }
        for (less, more) in
            [("100m", "0.5"), ("1", "1k"), ("1M", "1Mi"), ("64Mi", "1G"), ("5e2", "1Ki"), ("1e-3", "2m")]
        {
            assert!(amount(less) < amount(more), "{less} {more}");
        }
        for wrong in ["", "m", "-1", "1MB", "1 Mi", "1.2.3", ".", "1e", "1mi", "inf"] {
            assert!(quantity(wrong).is_err(), "{wrong}");
        }
    }
}
