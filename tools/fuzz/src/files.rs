//! Bundles, pictures and arrays.

use std::{fs, slice};

use kiln_bundle::check::check;
use kiln_bundle::format::encode_plans;
use kiln_bundle::{BundleFile, codec, hash, testing};
use kiln_runtime::npy;
use kiln_runtime::pipeline::png::{RgbImage, read_cover, read_described, save_png};

use crate::{Target, expect_line, file};

/// Bytes of a bundle's first page, whose checksum is at the end of the page.
const PAGE_BYTES: usize = 4096;

fn bundle() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("x.kiln");
    testing::write(&path).expect("it is valid");
    BundleFile::open(&path)
        .and_then(|bundle| bundle.write_with_programs(&path, &[(7, b"a program".to_vec())]))
        .expect("it is valid");
    fs::read(&path).expect("just written")
}

/// A bundle. The checksum of its first page is made right, or no change of the page would get past
/// it.
pub const BUNDLE: Target = Target {
    name: "bundle",
    seeds: || vec![bundle()],
    run: |folder, bytes| {
        let mut bytes = bytes.to_vec();
        if let Some(page) = bytes.get_mut(..PAGE_BYTES) {
            let (fields, checksum) = page.split_at_mut(PAGE_BYTES - 8);
            checksum.copy_from_slice(&hash(fields).to_le_bytes());
        }
        let path = file(folder, "x.kiln", &bytes);
        let read = BundleFile::open(&path).and_then(|bundle| {
            for name in bundle.program_names() {
                bundle.read_program(name)?;
            }
            bundle.verify_all(|_| {})
        });
        if let Err(error) = read {
            expect_line(&error.to_string());
        }
    },
};

/// A plan, decoded and checked; one that is sound is encoded to the same bytes.
pub const PLAN: Target = Target {
    name: "plan",
    seeds: || vec![codec::encode(&testing::plan()).expect("it is valid")],
    run: |_, bytes| match codec::decode(bytes) {
        Ok(plan) => {
            match check(&plan, testing::weights().len() as u64) {
                Ok(_) => assert!(encode_plans(slice::from_ref(&plan)).is_ok()),
                Err(violation) => expect_line(&violation.to_string()),
            }
            assert!(codec::encode(&plan).is_ok_and(|again| again == bytes));
        }
        Err(error) => expect_line(&error.to_string()),
    },
};

/// A picture to begin with, and the text in it.
pub const PICTURE: Target = Target {
    name: "picture",
    seeds: || {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("x.png");
        let image = RgbImage::from_pixels(5, 3, (0..45).collect()).expect("it is whole");
        save_png(&path, &image, None).expect("it is written");
        let colors = [(png::ColorType::Grayscale, 2), (png::ColorType::Rgba, 8)];
        let more = colors.map(|(color, row_bytes)| {
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, 2, 2);
            encoder.set_color(color);
            encoder.add_ztxt_chunk("k".into(), "a text".into()).expect("it is Latin");
            encoder.add_itxt_chunk("k".into(), "a text".into()).expect("it is text");
            let written =
                encoder.write_header().map(|mut w| w.write_image_data(&vec![9; row_bytes * 2]));
            written.expect("a header").expect("pixels");
            bytes
        });
        let plain = fs::read(&path).expect("just written");
        [plain].into_iter().chain(more).collect()
    },
    run: |folder, bytes| {
        let path = file(folder, "x.png", bytes);
        match read_cover(&path, 64, 48) {
            Ok(scaled) => assert_eq!((scaled.image.width(), scaled.image.height()), (64, 48)),
            Err(error) => expect_line(&error.to_string()),
        }
        if let Err(error) = read_described(&path) {
            expect_line(&error.to_string());
        }
    },
};

/// An array that is given to a run or a network.
pub const NPY: Target = Target {
    name: "npy",
    seeds: || {
        let mut bytes = Vec::new();
        npy::write(&mut bytes, &[2, 3], &[0.5f32; 6]).expect("memory is not full");
        vec![bytes]
    },
    run: |_, bytes| match npy::read_at_most::<f32>(bytes, 1 << 20) {
        Ok(array) => assert_eq!(array.values.len(), array.shape.iter().product::<usize>()),
        Err(error) => expect_line(&error.to_string()),
    },
};
