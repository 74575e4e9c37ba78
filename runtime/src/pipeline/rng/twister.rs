//! The Mersenne Twister that PyTorch's CPU generator is.

/// Words of the state.
const WORDS: usize = 624;
/// How far apart the words are that make a new one.
const DISTANCE: usize = 397;

/// MT19937: 32 random bits at a time.
///
/// Source: Matsumoto and Nishimura, "Mersenne Twister", 1998, with the initialization of 2002.
#[derive(Debug, Clone)]
pub(super) struct Twister {
    state: [u32; WORDS],
    next: usize,
}

impl Twister {
    pub(super) fn from_seed(seed: u32) -> Self {
        let mut word = seed;
        let state = std::array::from_fn(|index| {
            if index > 0 {
                let mixed = (word ^ word >> 30).wrapping_mul(1_812_433_253);
                word = mixed.wrapping_add(index as u32);
            }
            word
        });
        Self { state, next: WORDS }
    }

    pub(super) fn next_u32(&mut self) -> u32 {
        if self.next == WORDS {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }

    /// Makes the next words, each from three of those before.
    fn twist(&mut self) {
        for index in 0..WORDS {
            let low = self.state[(index + 1) % WORDS];
            let joined = self.state[index] & 0x8000_0000 | low & 0x7fff_ffff;
            let matrix = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[index] = self.state[(index + DISTANCE) % WORDS] ^ joined >> 1 ^ matrix;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_one_of_the_crate_and_of_the_standards() {
        // The C++ standard names the 10000th number of the default seed.
        let mut twister = Twister::from_seed(5489);
        let last = (0..10_000).map(|_| twister.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
        for seed in [0, 1, 42, 0x8000_0000, u32::MAX] {
            let (mut own, mut known) = (Twister::from_seed(seed), rand_mt::Mt::new(seed));
            assert!((0..2000).all(|_| own.next_u32() == known.next_u32()), "{seed}");
        }
    }
}
