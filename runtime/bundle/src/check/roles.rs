//! Roles of networks: unique, in order, and complete.

use super::violation::Violation;
use crate::plan::{GUIDANCE_BRANCHES, Manifest, Plan, Role};

/// Checks that each role occurs at most once and in order, that no required role is missing, and
/// that the denoiser's batch holds one branch of guidance or all. With variants of the denoiser it
/// holds all, and they are those that the manifest implies.
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
    let is_fast = plan.manifest.fast;
    if is_fast && guidance_batch != guidance_branches {
        return Err(Violation::GuidanceBatch { guidance_batch, guidance_branches });
    }
    for role in [Role::ShallowDenoiser, Role::ConditionalDenoiser, Role::ShallowConditionalDenoiser]
    {
        let wanted = is_fast && (guidance_branches > 1 || !role.is_conditional());
        match plan.with_role(role) {
            None if wanted => return Err(Violation::RoleMissing { role }),
            Some(index) if !wanted => {
                let network = plan.networks[index].name.clone();
                return Err(Violation::RoleUnwanted { network, role });
            }
            _ => {}
        }
    }
    Ok(())
}
