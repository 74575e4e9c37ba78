//! The request for a plan.

use crate::device::DeviceProfile;
use crate::storage::Storage;

/// The inputs of planning.
pub struct PlanRequest<'a> {
    /// The device.
    pub profile: &'a DeviceProfile,
    /// Storage of tensors.
    pub storage: Storage<'a>,
    /// Budget of the whole process, in bytes.
    pub budget_bytes: u64,
    /// Rows of a U-Net pass; `None` lets the strategies choose.
    pub guidance_batch: Option<usize>,
}
