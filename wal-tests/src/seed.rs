//! Random decisions that can be played again.

/// A generator whose whole future follows from one number (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which must not be zero.
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).expect("a usize has at most 64 bits");
        usize::try_from(self.bits() % limit).expect("it is below a usize")
    }

    /// A number below `limit`, which must not be zero.
    pub const fn number_below(&mut self, limit: u64) -> u64 {
        self.bits() % limit
    }

    /// True in `percent` of 100 cases.
    pub const fn chance(&mut self, percent: u64) -> bool {
        self.number_below(100) < percent
    }

    /// One of the choices.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// A generator of its own, for another thread.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.bits())
    }
}

/// The seed of this run: `WAL_SEED`, or a fresh one. Prints how to play it again; the output is
/// shown when the test fails.
///
/// # Panics
///
/// When `WAL_SEED` is no number, or the system has no random bytes.
#[must_use]
pub fn seed(test: &str) -> u64 {
    let seed = match std::env::var("WAL_SEED") {
        Ok(text) => text.parse().expect("WAL_SEED is a number"),
        Err(_) => getrandom::u64().expect("the system has random bytes") >> 32,
    };
    println!("seed {seed}; to replay: WAL_SEED={seed} cargo test --test {test}");
    seed
}
