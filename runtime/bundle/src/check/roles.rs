//! Roles of networks: unique, in order, and complete.

use super::violation::Violation;
use crate::plan::{GUIDANCE_BRANCHES, Manifest, Plan, Role};

/// Checks that each role occurs at most once and in order, that no required role is missing, and
/// that the denoiser's batch holds one branch of guidance or all.
pub(super) fn check(plan: &Plan) -> Result<(), Violation> {
    for pair in plan.networks.windows(2) {
        let (role, before) = (pair[1].role, pair[0].role);
        if role <= before {
            return Err(Violation::RoleOrder { network: pair[1].name.clone(), role, before });
        }
    }
    if let Some(&role) = Role::REQUIRED.iter().find(|&&role| plan.with_role(role).is_none()) {
        return Err(Violation::RoleMissing { role });
    }
    if plan.networks.iter().all(|network| !network.role.is_decoder()) {
        return Err(Violation::RoleMissing { role: Role::Decoder });
    }
    let Manifest { guidance_branches, guidance_batch, .. } = plan.manifest;
    let known = [1, GUIDANCE_BRANCHES].contains(&guidance_branches);
    if !known || ![1, guidance_branches].contains(&guidance_batch) {
        return Err(Violation::GuidanceBatch { guidance_batch, guidance_branches });
    }
    Ok(())
}
