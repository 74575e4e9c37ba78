//! IEEE 754 binary16 on the host: ports hold it, and nothing here computes with it.

/// The number that 16 bits stand for, exactly.
pub(crate) fn to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    if magnitude >= 0x7c00 {
        // Infinity, or NaN with its payload.
        return f32::from_bits(sign | 0x7f80_0000 | (magnitude & 0x3ff) << 13);
    }
    // Exponent and fraction in the places of binary32, whose exponents begin 112 lower: exact, for
    // every binary16 is normal there.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((112 + 127) << 23);
    f32::from_bits(scaled.to_bits() | sign)
}

/// The nearest of 16 bits, to even at ties; beyond the largest, infinity.
pub(crate) fn from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    let rounded = match magnitude {
        // NaN stays one: its quiet bit is set.
        0x7f80_0001.. => 0x7e00 | (magnitude >> 13 & 0x3ff),
        // From halfway between the largest and the next one on.
        0x477f_f000.. => 0x7c00,
        // Normal: the exponent moves by 112, and the 13 bits that go round the rest.
        0x3880_0000.. => {
            let moved = magnitude - (112 << 23);
            (moved + 0xfff + (moved >> 13 & 1)) >> 13
        }
        // Subnormal: a sum with 0.5, whose last bit is worth the smallest binary16, rounds.
        _ => (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits(),
    };
    sign | rounded as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn every_binary16_is_read_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let (found, expected) = (to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan());
            assert!(found.is_nan() || from_f32(found) == bits, "{bits:#x}");
        }
    }

    #[test]
    fn numbers_round_as_the_half_crate_does() {
        // Around every binary16 and the middle between it and the next, and a walk through all.
        let near = (0..0x7c00u16).flat_map(|bits| {
            let middle = (to_f32(bits) + to_f32(bits + 1).min(65536.0)) / 2.0;
            [to_f32(bits), middle]
                .map(f32::to_bits)
                .into_iter()
                .flat_map(|b| [b.max(1) - 1, b, b + 1])
        });
        let walk = (0..u32::MAX / 4099).map(|step| step * 4099);
        for bits in near.chain(walk) {
            for value in [f32::from_bits(bits), -f32::from_bits(bits)] {
                let (found, expected) = (from_f32(value), f16::from_f32(value));
                let same = found == expected.to_bits();
                assert!(same || value.is_nan() && to_f32(found).is_nan(), "{value:e}");
            }
        }
    }
}
