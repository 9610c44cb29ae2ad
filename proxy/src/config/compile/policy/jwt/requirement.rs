//! `JwtRequirement`.

use remora_xds::diag::At;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_requirement::RequiresType;

use super::provider::audience_list;
use crate::config::compile::Scope;
use crate::config::compile::common::unsupported;
use crate::policy::jwt::provider::Provider;
use crate::policy::jwt::requirement::{Leniency, Requirement};

/// The providers that requirements may name.
#[derive(Clone, Copy)]
pub(super) struct Providers<'p>(pub(super) &'p [Provider]);

impl Providers<'_> {
    pub(super) fn requirement(
        self,
        pb: &pb::JwtRequirement,
        at: &At<'_>,
        scope: &mut Scope<'_>,
    ) -> Option<Requirement> {
        match &pb.requires_type {
            Some(RequiresType::ProviderName(name)) => {
                let provider = self.position(name, &at.field("provider_name"), scope)?;
                Some(Requirement::Provider { provider, audiences: None })
            }
            Some(RequiresType::ProviderAndAudiences(pb::ProviderWithAudiences {
                provider_name,
                audiences,
            })) => {
                let at = at.field("provider_and_audiences");
                let provider = self.position(provider_name, &at.field("provider_name"), scope)?;
                Some(Requirement::Provider { provider, audiences: Some(audience_list(audiences)) })
            }
            Some(RequiresType::RequiresAny(pb::JwtRequirementOrList { requirements })) => {
                let at = at.field("requires_any");
                self.any(requirements, &at.field("requirements"), scope)
            }
            Some(RequiresType::RequiresAll(pb::JwtRequirementAndList { requirements })) => {
                let at = at.field("requires_all");
                self.list(requirements, &at.field("requirements"), scope).map(Requirement::All)
            }
            Some(RequiresType::AllowMissing(_)) => Some(Requirement::Optional(Leniency::Missing)),
            Some(RequiresType::AllowMissingOrFailed(_)) => Some(Requirement::Optional(Leniency::Failed)),
            Some(RequiresType::ExtractOnlyWithoutValidation(_)) => {
                unsupported(true, &at.field("extract_only_without_validation"), scope);
                None
            }
            None => {
                scope.errors.report(at, "asks for nothing").fix("name a provider");
                None
            }
        }
    }

    /// `allow_missing` and `allow_missing_or_failed` in a list say something about the list.
    fn any(self, list: &[pb::JwtRequirement], at: &At<'_>, scope: &mut Scope<'_>) -> Option<Requirement> {
        let leniency = |pb: &pb::JwtRequirement| match &pb.requires_type {
            Some(RequiresType::AllowMissing(_)) => Leniency::Missing,
            Some(RequiresType::AllowMissingOrFailed(_)) => Leniency::Failed,
            _ => Leniency::Strict,
        };
        let whole = list.iter().map(leniency).max().unwrap_or(Leniency::Strict);
        let others: Vec<_> = list.iter().filter(|pb| leniency(pb) == Leniency::Strict).cloned().collect();
        self.list(&others, at, scope).map(|list| Requirement::Any(list, whole))
    }

    fn list(
        self,
        list: &[pb::JwtRequirement],
        at: &At<'_>,
        scope: &mut Scope<'_>,
    ) -> Option<Box<[Requirement]>> {
        list.iter().enumerate().map(|(i, pb)| self.requirement(pb, &at.index(i), scope)).collect()
    }

    fn position(self, name: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<usize> {
        let position = self.0.iter().position(|provider| *provider.name == *name);
        if position.is_none() {
            scope.errors.report(at, format!("`{name}` is not in providers"));
        }
        position
    }
}
