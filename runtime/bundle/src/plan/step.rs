//! Steps: loads and frees of weights, look-ups of rows, kernel launches.

use serde::{Deserialize, Serialize};

use super::{BlockId, BufferId, KernelId, SlotId};

/// What the runtime does at one instant.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Step {
    /// Read a streamed block into a slot. The read may run ahead as soon as the slot is free.
    Load {
        /// The block.
        block: BlockId,
        /// Its slot.
        slot: SlotId,
    },
    /// Copy rows of a table in the weights section into a buffer. The table is never in memory.
    Gather(Gather),
    /// Run a kernel.
    Dispatch(Dispatch),
    /// The block is not read again in this run of the network; its slot is free.
    Free {
        /// The block.
        block: BlockId,
    },
}

/// Bytes behind each row of a table: the row's hash, little-endian.
pub const ROW_CHECKSUM_BYTES: u64 = 8;

/// A look-up of rows in a table. Only the rows that are asked for are read from the file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Gather {
    /// The op, for people.
    pub name: String,
    /// Start of the table in the weights section.
    pub table_offset_bytes: u64,
    /// Bytes of a row, in the output's element type. In the file each row is followed by a
    /// checksum of [`ROW_CHECKSUM_BYTES`].
    pub row_bytes: u64,
    /// Rows in the table. A larger index is an error.
    pub row_count: u32,
    /// Buffer of the `i32` indices: an input of the network that the host writes.
    pub indices: BufferId,
    /// How many indices.
    pub index_count: u32,
    /// Buffer of the result: the rows one after the other.
    pub output: BufferId,
}

/// One kernel launch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Dispatch {
    /// The op that the launch belongs to, for people.
    pub name: String,
    /// The kernel.
    pub kernel: KernelId,
    /// Arguments in order.
    pub args: Vec<Arg>,
    /// Global work size.
    pub global: [u64; 3],
    /// First work-item.
    pub offset: [u64; 3],
    /// Global size of the whole launch. A launch that was split to keep dispatches short is several
    /// steps; `offset` and `global` give the part that this step runs. The parts are tiles of one
    /// size, smaller only at the end of an axis, and cover `range` in order, the first axis
    /// innermost. An unsplit launch has `range == global`.
    pub range: [u64; 3],
    /// Local work size; `None` leaves it to the driver.
    pub local: Option<[u64; 3]>,
    /// Arithmetic, two for each multiply-add.
    pub flops: u64,
    /// Bytes read and written, every argument once. Launches that write one buffer together share
    /// its bytes.
    pub bytes: u64,
    /// Predicted time on the device of the profile.
    pub predicted_ns: u64,
}

/// How a launch uses a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Access {
    /// Read only.
    Read,
    /// Written only: all of the region, unless an earlier launch wrote the rest.
    Write,
}

/// One kernel argument.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Arg {
    /// A region of a buffer.
    Buffer {
        /// The buffer.
        buffer: BufferId,
        /// Start of the region in the buffer.
        offset_bytes: u64,
        /// Length of the region.
        len_bytes: u64,
        /// What the kernel does with the region.
        access: Access,
    },
    /// A region of a weight block, read only.
    Weight {
        /// The block.
        block: BlockId,
        /// Start of the region in the block.
        offset_bytes: u64,
        /// Length of the region.
        len_bytes: u64,
    },
    /// A 32-bit unsigned scalar.
    U32(u32),
    /// A 32-bit floating-point scalar.
    F32(f32),
}
