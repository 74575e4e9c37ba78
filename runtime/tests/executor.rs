//! The executor against values computed here, network by network.

mod small;

use std::path::Path;
use std::sync::Arc;

use kiln_bundle::BundleFile;
use kiln_bundle::plan::{BlockId, Plan, Port};
use kiln_runtime::device;
use kiln_runtime::executor::{Executor, ExecutorOptions};
use kiln_runtime::stream::Run;
use small::Small;

fn load(path: &Path, profiling: bool) -> Executor {
    load_with(path, &ExecutorOptions { profiling, ..ExecutorOptions::default() })
}

fn load_with(path: &Path, options: &ExecutorOptions) -> Executor {
    let bundle = Arc::new(BundleFile::open(path).unwrap());
    let device = device::select("auto").unwrap();
    Executor::load(bundle, &device, options, &mut |_, _| {}).unwrap()
}

fn ports(executor: &Executor, network: usize) -> (Vec<Port>, Vec<Port>) {
    let network = &executor.plan().networks[network];
    (network.inputs.iter().map(|input| input.port.clone()).collect(), network.outputs.clone())
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn read(executor: &Executor, port: &Port) -> Vec<f32> {
    let elems: u32 = port.shape.iter().product();
    let mut bytes = vec![0; elems as usize * 4];
    executor.read_port(port, &mut bytes).unwrap();
    bytes.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let tolerance = 1e-5 * expected.abs().max(1.0);
        assert!((found - expected).abs() <= tolerance, "{index}: {found} is not {expected}");
    }
}

fn runs(networks: &[usize]) -> Vec<Run> {
    let residents = |network| match network {
        3 => vec![BlockId(small::RESIDENT_BLOCK as u32)],
        _ => vec![],
    };
    networks.iter().map(|&network| Run { network, residents: residents(network) }).collect()
}

fn networks_are_right(small: Small, options: &ExecutorOptions) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.kiln");
    small.write(&path, b"");
    let mut executor = load_with(&path, options);
    let before = executor.allocations();
    let order = [0, 1, 2, 3, 3, 3, 4];
    let mut stream = executor.start_stream(runs(&order)).unwrap();

    let tokens: Vec<i32> = (0..154).map(|n| n * 311).collect();
    let (inputs, outputs) = ports(&executor, 0);
    let token_bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    executor.write_port(&inputs[0], &token_bytes).unwrap();
    executor.run(0, &mut stream).unwrap();
    let embedding = small::embedding(&tokens);
    assert_close(&read(&executor, &outputs[0]), &embedding);

    executor.run(1, &mut stream).unwrap();
    let (inputs, outputs) = ports(&executor, 2);
    executor.write_port(&inputs[0], &bytes(&[3.0, 2.0, 1.0, 0.5])).unwrap();
    executor.run(2, &mut stream).unwrap();
    let time_table = outputs[0].buffer;

    let (inputs, outputs) = ports(&executor, 3);
    for (row, timestep) in [3.0, 2.0, 1.0].into_iter().enumerate() {
        let latent: Vec<f32> = (0..128).map(|i| (i * (row + 1)) as f32 / 100.0).collect();
        executor.write_port(&inputs[0], &bytes(&latent)).unwrap();
        executor.copy((time_table, row as u64 * 32), (inputs[2].buffer, 0), 32).unwrap();
        executor.run(3, &mut stream).unwrap();
        let eps = read(&executor, &outputs[0]);
        for branch in 0..2 {
            let of = |values: &[f32]| {
                let half = values.len() / 2;
                values[branch * half..(branch + 1) * half].to_vec()
            };
            assert_close(&of(&eps), &small::unet(&of(&latent), &of(&embedding), timestep));
        }
    }

    let latent: Vec<f32> = (0..64).map(|i| i as f32 / 64.0).collect();
    let (inputs, outputs) = ports(&executor, 4);
    executor.write_port(&inputs[0], &bytes(&latent)).unwrap();
    executor.run(4, &mut stream).unwrap();
    assert_close(&read(&executor, &outputs[0]), &small::decode(&latent));

    let stats = stream.finish().unwrap();
    let streamed = 4 + 3 * small::LAYERS as u64;
    assert_eq!(stats.streamed_bytes, streamed * small::BLOCK_BYTES);
    assert_eq!(stats.resident_bytes, 3 * small::BLOCK_BYTES);
    assert_eq!(executor.allocations(), before);
    let memory = &executor.plan().memory;
    let planned = memory.arena_bytes + memory.slot_bytes.iter().sum::<u64>() + memory.staging_bytes;
    assert_eq!(before.high_water_bytes, planned);
}

#[test]
fn networks_are_right_when_weights_are_mapped() {
    networks_are_right(Small::default(), &ExecutorOptions::default());
}

/// A driver that mixes up the arguments of recorded launches, as PoCL 3.1 does with those of one
/// kernel object, gives other numbers.
#[test]
fn networks_are_right_with_recorded_launches_and_without() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.kiln");
    Small::default().write(&path, b"");
    let device = device::select("auto").unwrap();
    let records = device.extensions.iter().any(|e| e == "cl_khr_command_buffer");
    for command_buffers in [true, false] {
        let options = ExecutorOptions {
            command_buffers: Some(command_buffers),
            ..ExecutorOptions::default()
        };
        networks_are_right(Small::default(), &options);
        let recorded = load_with(&path, &options).recorded_launches(3);
        assert_eq!(recorded, if command_buffers && records { 2 } else { 0 });
    }
}

#[test]
fn networks_are_right_when_weights_are_staged() {
    for staging_bytes in [1 << 20, 8192, 4096, 5000] {
        let small = Small { staging_bytes, ..Small::default() };
        networks_are_right(small, &ExecutorOptions::default());
    }
}

#[test]
fn profiling_times_every_launch() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.kiln");
    Small::default().write(&path, b"");
    let mut executor = load(&path, true);
    let mut stream = executor.start_stream(runs(&[3, 3])).unwrap();
    executor.run(3, &mut stream).unwrap();
    executor.run(3, &mut stream).unwrap();
    let times = executor.take_launch_times().unwrap();
    assert_eq!(times.len(), 2 * (small::LAYERS + 2));
    assert!(times.iter().all(|time| time.network == 3 && time.nanoseconds > 0));
    assert!(executor.take_launch_times().unwrap().is_empty());
}

#[test]
fn an_unused_stream_ends_when_it_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.kiln");
    Small::default().write(&path, b"");
    let mut executor = load(&path, false);
    for _ in 0..20 {
        let mut stream = executor.start_stream(runs(&[3; 50])).unwrap();
        executor.run(3, &mut stream).unwrap();
    }
}

#[test]
fn a_stream_of_another_network_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.kiln");
    Small::default().write(&path, b"");
    let mut executor = load(&path, false);
    let mut stream = executor.start_stream(runs(&[0])).unwrap();
    assert!(executor.run(1, &mut stream).is_err());
}

/// An arena that no device can allocate shows that requirements are compared before.
#[test]
fn a_bundle_that_does_not_fit_the_device_is_refused_before_anything_is_allocated() {
    let huge = |plan: &mut Plan| {
        plan.memory.arena_bytes = 1 << 50;
        plan.memory.arena_part_bytes = 1 << 50;
        plan.memory.budget_bytes = 1 << 51;
    };
    let refused = |word: &str, change: fn(&mut Plan)| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("small.kiln");
        Small::default().write_changed(&path, b"", |plan| {
            huge(plan);
            plan.requirements.max_alloc_bytes = 0;
            change(plan);
        });
        let bundle = Arc::new(BundleFile::open(&path).unwrap());
        let device = device::select("auto").unwrap();
        let error = Executor::load(bundle, &device, &ExecutorOptions::default(), &mut |_, _| {})
            .err()
            .expect(word);
        assert_eq!(error.exit_code(), 3, "{error}");
        let message = error.to_string();
        assert!(message.contains(word) && message.contains(&device.name), "{message}");
    };
    refused("in one allocation", |plan| plan.requirements.max_alloc_bytes = 1 << 50);
    refused("of local memory", |plan| plan.requirements.local_mem_bytes = 1 << 40);
    refused("in a work-group", |plan| plan.requirements.work_group_size = 1 << 40);
    refused("of base alignment", |plan| {
        plan.requirements.base_align_bytes = 1;
    });
    refused("cl_kiln_unheard_of", |plan| {
        plan.requirements.extensions = vec!["cl_kiln_unheard_of".into()];
    });
    refused("bytes of memory", |_| {});
}
