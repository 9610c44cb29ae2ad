//! Kinds of documents, and what their fields may say. Many of the values lie at the edge of what is right, or behind it.

use std::fmt;

use serde_json::Value;

/// A kind of document: what it needs, and fields that it may have.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    /// A spec with what is needed, as JSON.
    least: &'static str,
    /// Places in the spec, and JSON with words of [`WORDS`].
    pub(crate) fields: &'static [(&'static str, &'static str)],
}

/// Of a counterexample the tables are not interesting.
impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Kind {
    /// The spec with what is needed, and no more.
    pub(crate) fn least(&self) -> Value {
        serde_json::from_str(self.least).unwrap()
    }
}

/// What stands for a choice in the JSON of a field.
pub(crate) const WORDS: [(&str, &[&str]); 6] = [
    ("$number", &["0", "1", "2", "10", "99", "100", "101", "1000", "1024", "65537", "4294967295"]),
    ("$time", &["\"0s\"", "\"1ms\"", "\"50ms\"", "\"1s\"", "\"10s\"", "\"1m\"", "\"24h\"", "\"99999h\""]),
    (
        "$text",
        &[
            "\"\"",
            "\"a\"",
            "\"X-A\"",
            "\"ä\"",
            "\"a b\"",
            "\"a=b\"",
            "\"a;b\"",
            "\"a\\\"b\"",
            "\"a,b\"",
            "\"%\"",
            "\"%REQ(x)%\"",
            "\"(\"",
            "\"[a-z]+\"",
            "\"\\\\\"",
            "\"*\"",
            "\"a:b\"",
            "\"\\u007f\"",
            "\"host\"",
            "\"te\"",
        ],
    ),
    (
        "$path",
        &[
            "\"\"",
            "\"/\"",
            "\"/a\"",
            "\"/a/\"",
            "\"/ä\"",
            "\"/a b\"",
            "\"/%\"",
            "\"/%41\"",
            "\"/a\\\"b\"",
            "\"/a;b\"",
            "\"/a?b=c\"",
            "\"/a#b\"",
            "\"/(a|b)\"",
            "\"/\\\\\"",
            "\"a\"",
            "\"/a*\"",
            "\"/{*}/b\"",
        ],
    ),
    ("$status", &["199", "200", "204", "304", "400", "429", "503", "599", "600"]),
    ("$percent", &["0", "1", "50", "100", "101"]),
];

pub(crate) const KINDS: [&Kind; 7] = [
    &AUTHENTICATION_POLICY,
    &AUTHORIZATION_POLICY,
    &TRAFFIC_POLICY,
    &RATE_LIMIT_POLICY,
    &FAULT_POLICY,
    &HTTP_ROUTE,
    &GRPC_ROUTE,
];

pub(crate) const TRAFFIC_POLICY: Kind = Kind {
    name: "TrafficPolicy",
    version: "remora.dev/v1alpha1",
    least: r#"{"targetRefs": [{"name": "shop"}]}"#,
    fields: &[
        ("retries.retryOn", r#"["5xx", "cancelled", "unavailable"]"#),
        ("retries.retryOn", r#"["reset", "gateway-error", "retriable-4xx", "deadline-exceeded"]"#),
        ("retries.statusCodes", "[$status]"),
        ("retries.allMethods", "true"),
        ("retries.num", "$number"),
        ("retries.perTry", "$time"),
        ("retries.perTryIdle", "$time"),
        ("retries.budget", r#"{"percent": $percent, "minPerSecond": $number}"#),
        ("retries", r#"{"num": 0, "budget": {"percent": 0, "minPerSecond": 0}}"#),
        ("retries.budget.interval", "$time"),
        ("timeouts.request", "$time"),
        ("timeouts.idle", "$time"),
        ("timeouts.connect", "$time"),
        ("connections.maxConnections", "$number"),
        ("connections.maxPendingRequests", "$number"),
        ("connections.maxRequests", "$number"),
        ("loadBalancing", r#"{"policy": "PeakEwma", "decay": $time}"#),
        ("loadBalancing", r#"{"policy": "LeastRequest", "choiceCount": $number}"#),
        (
            "loadBalancing",
            r#"{"policy": "RoundRobin", "slowStart": {"window": $time, "minWeightPercent": $percent}}"#,
        ),
        (
            "loadBalancing",
            r#"{"policy": "RingHash", "minimumRingSize": $number, "hashOn": [{"header": $text}]}"#,
        ),
        (
            "loadBalancing",
            r#"{"policy": "RingHash", "hashOn": [{"cookie": {"name": $text, "ttl": $time, "path": $path}}]}"#,
        ),
        (
            "loadBalancing",
            r#"{"policy": "Maglev", "tableSize": $number, "hashOn": [{"queryParameter": $text}]}"#,
        ),
        (
            "loadBalancing",
            r#"{"policy": "Maglev", "boundedLoad": $number, "hashOn": [{"sourceIp": true, "terminal": true}]}"#,
        ),
        ("loadBalancing.panicThreshold", "$percent"),
        (
            "loadBalancing.session",
            r#"{"cookie": {"name": $text, "ttl": $time, "path": $path}, "strict": true}"#,
        ),
        ("loadBalancing.session", r#"{"cookie": {"name": "a", "path": $path}}"#),
        ("loadBalancing.session", r#"{"header": $text}"#),
        ("outlierDetection.consecutive5xxErrors", "$number"),
        ("outlierDetection.consecutiveGatewayErrors", "$number"),
        (
            "outlierDetection",
            r#"{"splitExternalLocalOriginErrors": true, "consecutiveLocalOriginFailures": $number}"#,
        ),
        ("outlierDetection.interval", "$time"),
        ("outlierDetection.baseEjectionTime", "$time"),
        ("outlierDetection.maxEjectionTime", "$time"),
        ("outlierDetection.maxEjectionPercent", "$percent"),
        (
            "outlierDetection.successRate",
            r#"{"minimumHosts": $number, "requestVolume": $number, "stdevFactor": $number}"#,
        ),
        (
            "outlierDetection.failurePercentage",
            r#"{"threshold": $percent, "minimumHosts": $number, "requestVolume": $number}"#,
        ),
        (
            "healthChecks",
            r#"[{"http": {"path": $path, "host": $text}, "interval": $time, "timeout": $time}]"#,
        ),
        (
            "healthChecks",
            r#"[{"http": {"path": "/", "expectedStatuses": [$status, "200-299"]}, "unhealthyThreshold": $number}]"#,
        ),
        ("healthChecks", r#"[{"grpc": {"service": $text}, "healthyThreshold": $number, "interval": $time}]"#),
        (
            "healthChecks",
            r#"[{"port": 5432, "tcp": {"send": $text, "receive": $text}}, {"port": 9090, "http": {"path": $path}}]"#,
        ),
        ("circuitBreaker", r#"{"slidingWindowSize": $number, "minimumNumberOfCalls": $number}"#),
        (
            "circuitBreaker",
            r#"{"slidingWindowType": "TIME_BASED", "slidingWindowSize": $number, "minimumNumberOfCalls": $number}"#,
        ),
        ("circuitBreaker.failureRateThreshold", "$percent"),
        ("circuitBreaker.slowCallRateThreshold", "0.5"),
        ("circuitBreaker.slowCallDurationThreshold", "$time"),
        ("circuitBreaker.waitDurationInOpenState", "$time"),
        ("circuitBreaker.permittedNumberOfCallsInHalfOpenState", "$number"),
        ("circuitBreaker.maxWaitDurationInHalfOpenState", "$time"),
        ("circuitBreaker.automaticTransitionFromOpenToHalfOpenEnabled", "true"),
        ("circuitBreaker.failureStatuses", r#"[$status, "500-599", "429-429"]"#),
        (
            "circuitBreaker.fallback",
            r#"{"answer": {"status": $status, "headers": {"x-a": $text}, "body": $text}}"#,
        ),
        ("circuitBreaker.fallback", r#"{"backendRef": {"name": "stock", "port": 8081}}"#),
        (
            "circuitBreaker.fallback",
            r#"{"lastGood": {"maxAge": $time, "maxBodyBytes": $number, "maxBytes": $number}}"#,
        ),
        ("circuitBreaker.fallback.lastGood", r#"{"maxBodyBytes": $number}"#),
        ("circuitBreaker.fallback.lastGood", r#"{"maxBytes": $number}"#),
    ],
};

pub(crate) const HTTP_ROUTE: Kind = Kind {
    name: "HTTPRoute",
    version: "gateway.networking.k8s.io/v1",
    least: r#"{"parentRefs": [{"kind": "Service", "name": "shop", "port": 8080}], "rules": [{"backendRefs": [{"name": "stock", "port": 8081}]}]}"#,
    fields: &[
        ("rules.0.matches", r#"[{"path": {"type": "Exact", "value": $path}}]"#),
        ("rules.0.matches", r#"[{"path": {"value": $path}, "method": "GET"}]"#),
        ("rules.0.matches", r#"[{"path": {"type": "RegularExpression", "value": $path}}]"#),
        ("rules.0.matches", r#"[{"headers": [{"name": $text, "value": $text}]}]"#),
        ("rules.0.matches", r#"[{"headers": [{"name": "x", "type": "RegularExpression", "value": $text}]}]"#),
        ("rules.0.matches", r#"[{"queryParams": [{"name": $text, "value": $text}]}]"#),
        (
            "rules.0.matches",
            r#"[{"queryParams": [{"name": "x", "type": "RegularExpression", "value": $text}]}]"#,
        ),
        ("rules.0.timeouts.request", "$time"),
        ("rules.0.timeouts.backendRequest", "$time"),
        ("rules.0.retry", r#"{"codes": [$status], "attempts": $number, "backoff": $time}"#),
        ("rules.0.sessionPersistence", r#"{"sessionName": $text}"#),
        ("rules.0.sessionPersistence", r#"{"sessionName": $text, "type": "Header"}"#),
        (
            "rules.0.sessionPersistence",
            r#"{"absoluteTimeout": $time, "cookieConfig": {"lifetimeType": "Permanent"}}"#,
        ),
        ("rules.0.backendRefs.0.weight", "$number"),
        (
            "rules.0.backendRefs",
            r#"[{"name": "stock", "port": 8081, "weight": $number}, {"name": "shop", "port": 8080, "weight": $number}]"#,
        ),
        (
            "rules.0.backendRefs.0.filters",
            r#"[{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": $text, "value": $text}]}}]"#,
        ),
        (
            "rules.0.filters",
            r#"[{"type": "RequestHeaderModifier", "requestHeaderModifier": {"add": [{"name": $text, "value": $text}], "remove": [$text]}}]"#,
        ),
        (
            "rules.0.filters",
            r#"[{"type": "URLRewrite", "urlRewrite": {"hostname": $text, "path": {"type": "ReplaceFullPath", "replaceFullPath": $path}}}]"#,
        ),
        (
            "rules.0.filters",
            r#"[{"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": $path}}}]"#,
        ),
        (
            "rules.0",
            r#"{"filters": [{"type": "RequestRedirect", "requestRedirect": {"hostname": $text, "scheme": "https", "path": {"type": "ReplaceFullPath", "replaceFullPath": $path}}}]}"#,
        ),
        (
            "rules.0",
            r#"{"filters": [{"type": "RequestRedirect", "requestRedirect": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": $path}}}]}"#,
        ),
        (
            "rules.0.filters",
            r#"[{"type": "CORS", "cors": {"allowOrigins": ["https://*.a.example:8443", "x://b"], "allowMethods": [$text], "allowHeaders": [$text], "maxAge": $number}}]"#,
        ),
        (
            "rules.0.filters",
            r#"[{"type": "CORS", "cors": {"allowOrigins": ["*"], "exposeHeaders": [$text], "allowCredentials": true}}]"#,
        ),
        (
            "rules.0.filters",
            r#"[{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "shop", "port": 8080}, "percent": $percent}}]"#,
        ),
        (
            "rules.0.filters",
            r#"[{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "stock", "port": 5433}, "fraction": {"numerator": $number, "denominator": $number}}}]"#,
        ),
        (
            "rules.1",
            r#"{"matches": [{"path": {"value": "/b"}}], "sessionPersistence": {"type": "Header"}, "backendRefs": [{"name": "shop", "port": 8080}]}"#,
        ),
    ],
};

const GRPC_ROUTE: Kind = Kind {
    name: "GRPCRoute",
    version: "gateway.networking.k8s.io/v1",
    least: r#"{"parentRefs": [{"kind": "Service", "name": "shop", "port": 9090}], "rules": [{"backendRefs": [{"name": "stock", "port": 9091}]}]}"#,
    fields: &[
        ("rules.0.matches", r#"[{"method": {"service": $text, "method": $text}}]"#),
        ("rules.0.matches", r#"[{"method": {"type": "RegularExpression", "service": $text}}]"#),
        ("rules.0.matches", r#"[{"headers": [{"name": $text, "value": $text}]}]"#),
        (
            "rules.0.filters",
            r#"[{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "shop", "port": 9090}}}]"#,
        ),
    ],
};

const RATE_LIMIT_POLICY: Kind = Kind {
    name: "RateLimitPolicy",
    version: "remora.dev/v1alpha1",
    least: r#"{"targetRefs": [{"name": "shop"}], "limits": [{"requests": 1, "per": "1s"}]}"#,
    fields: &[
        ("limits", r#"[{"requests": $number, "per": $time, "burst": $number}]"#),
        ("limits", r#"[{"scope": "Mesh", "requests": $number, "per": $time}]"#),
        ("limits.1", r#"{"scope": "Mesh", "requests": $number, "per": $time}"#),
        ("limits", r#"[{"requests": $number, "per": $time, "by": [{"client": true}, {"header": $text}]}]"#),
        (
            "limits",
            r#"[{"requests": 1, "per": "1s", "by": [{"queryParameter": $text}, {"queryParameter": $text}]}]"#,
        ),
        (
            "limits.1",
            r#"{"requests": 1, "per": "1m", "match": {"path": {"type": "RegularExpression", "value": $path}}}"#,
        ),
        (
            "limits.1",
            r#"{"requests": 1, "per": "1m", "match": {"path": {"value": $path}, "headers": [{"name": $text, "value": $text}]}}"#,
        ),
        (
            "limits.1",
            r#"{"requests": 1, "per": "1m", "match": {"method": "POST", "queryParams": [{"name": $text, "value": $text}]}}"#,
        ),
        (
            "limits.1",
            r#"{"name": "a", "requests": 2, "per": "1s", "by": [{"header": $text}, {"header": $text}]}"#,
        ),
        ("maxBuckets", "$number"),
        ("dryRun", "true"),
        (
            "global",
            r#"{"backendRef": {"name": "stock", "port": 9091}, "domain": $text, "timeout": $time, "descriptors": [{"entries": [{"key": $text, "value": $text}]}]}"#,
        ),
        (
            "global",
            r#"{"backendRef": {"name": "stock", "port": 9091}, "domain": "d", "failOpen": false, "descriptors": [{"entries": [{"key": $text, "header": $text}, {"key": "b", "queryParameter": $text}]}]}"#,
        ),
        (
            "global",
            r#"{"backendRef": {"name": "stock", "port": 9091}, "domain": "d", "descriptors": [{"entries": [{"key": "a", "value": "b", "match": {"path": {"value": $path}, "queryParams": [{"name": $text, "value": $text}]}}]}]}"#,
        ),
    ],
};

const FAULT_POLICY: Kind = Kind {
    name: "FaultPolicy",
    version: "remora.dev/v1alpha1",
    least: r#"{"targetRefs": [{"name": "shop"}], "faults": [{"delay": {"fixedDelay": "1s", "percentage": 1}}]}"#,
    fields: &[
        ("faults", r#"[{"delay": {"fixedDelay": $time, "percentage": $percent}}]"#),
        ("faults", r#"[{"abort": {"httpStatus": $status, "percentage": 0.0001}}]"#),
        ("faults", r#"[{"abort": {"grpcStatus": $number, "percentage": $percent}}]"#),
        (
            "faults.0.match",
            r#"{"path": {"type": "RegularExpression", "value": $path}, "headers": [{"name": $text, "value": $text}]}"#,
        ),
        ("faults.0.match", r#"{"path": {"type": "Exact", "value": $path}, "method": "GET"}"#),
    ],
};

const AUTHENTICATION_POLICY: Kind = Kind {
    name: "AuthenticationPolicy",
    version: "remora.dev/v1alpha1",
    least: r#"{"targetRefs": [{"name": "shop"}]}"#,
    fields: &[
        ("mtls.mode", r#""Permissive""#),
        ("portLevelMtls", r#"{"5432": {"mode": "Disabled"}}"#),
        (
            "jwtRules",
            r#"[{"issuer": $text, "jwksUri": "https://a.example/keys", "timeout": $time, "fromHeaders": [{"name": $text, "prefix": $text}]}]"#,
        ),
        (
            "jwtRules",
            r#"[{"issuer": "a", "jwksUri": "http://10.0.0.9/keys", "fromParams": [$text], "fromCookies": [$text], "outputPayloadToHeader": $text}]"#,
        ),
    ],
};

const AUTHORIZATION_POLICY: Kind = Kind {
    name: "AuthorizationPolicy",
    version: "remora.dev/v1alpha1",
    least: r#"{"targetRefs": [{"name": "shop"}], "rules": [{}]}"#,
    fields: &[
        ("action", r#""Deny""#),
        ("dryRun", "true"),
        ("rules.0.to", r#"[{"operation": {"paths": [$path, "/a*"], "notMethods": [$text]}}]"#),
        ("rules.0.to", r#"[{"operation": {"hosts": [$text], "ports": [8080]}}]"#),
        (
            "rules.0.from",
            r#"[{"source": {"principals": [$text], "notNamespaces": ["a"], "ipBlocks": ["10.0.0.0/8"]}}]"#,
        ),
        (
            "rules.0.when",
            r#"[{"key": "request.headers[x-a]", "values": [$text]}, {"key": "connection.sni", "notValues": [$text]}]"#,
        ),
        (
            "@provider",
            r#"{"protocol": "GRPC", "backendRef": {"name": "stock", "port": 9091}, "timeout": $time, "forwardBody": {"maxSize": $number}, "grpc": {"allowedHeaders": [$text]}}"#,
        ),
        (
            "@provider",
            r#"{"protocol": "HTTP", "backendRef": {"name": "stock", "port": 8081}, "failOpen": true, "http": {"path": $path, "allowedHeaders": [$text], "allowedResponseHeaders": [$text]}}"#,
        ),
    ],
};
