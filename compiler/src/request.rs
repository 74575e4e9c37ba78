//! What a plan is asked to be.

use crate::device::DeviceProfile;
use crate::storage::Storage;

/// What a plan is made for.
pub struct PlanRequest<'a> {
    /// The device.
    pub profile: &'a DeviceProfile,
    /// How tensors are stored.
    pub storage: Storage<'a>,
    /// Most bytes of the whole process.
    pub budget_bytes: u64,
    /// Rows of a U-Net pass; `None` leaves them to the strategies.
    pub guidance_batch: Option<usize>,
}
