//! The request for a plan.

use crate::device::DeviceProfile;
use crate::model::GUIDANCE_BRANCHES;
use crate::storage::Storage;

use kiln_bundle::plan::Manifest;

/// The inputs of planning.
pub struct PlanRequest<'a> {
    /// The device.
    pub profile: &'a DeviceProfile,
    /// Storage of tensors.
    pub storage: Storage<'a>,
    /// Budget of the whole process, in bytes.
    pub budget_bytes: u64,
    /// Branches of guidance: 2, or 1 for guidance 1 alone. `None`: by the model's defaults, see
    /// [`branches`](Self::branches).
    pub guidance_branches: Option<usize>,
    /// Rows of a U-Net pass; `None` lets the strategies choose.
    pub guidance_batch: Option<usize>,
    /// Whether the plan has variants of the U-Net that cost less, for cheaper steps. All branches
    /// of guidance are then in one pass.
    pub fast: bool,
    /// Memory for the factors of LoRAs that a run switches on, in bytes; 0: none are.
    pub lora_bytes: u64,
}

impl<'a> PlanRequest<'a> {
    /// A request that leaves the branches and the rows of guidance to the model and the strategies.
    pub fn new(profile: &'a DeviceProfile, storage: Storage<'a>, budget_bytes: u64) -> Self {
        let (guidance_branches, guidance_batch, fast) = (None, None, false);
        Self {
            profile,
            storage,
            budget_bytes,
            guidance_branches,
            guidance_batch,
            fast,
            lora_bytes: 0,
        }
    }

    /// Branches of guidance to plan for. A model has one if its default guidance is 1, or if its
    /// U-Net takes the scale of guidance as an input.
    pub fn branches(&self, model: &Manifest) -> usize {
        let is_single = model.schedule.guidance == 1.0 || model.guidance_channels > 0;
        self.guidance_branches.unwrap_or(if is_single { 1 } else { GUIDANCE_BRANCHES })
    }
}
