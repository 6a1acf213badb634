//! Changes inputs at random, without looking at what the changed input does.

use wal_tests::seed::Random;

/// Values at which lengths and counts tend to break.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_fff0,
    u64::MAX,
];

/// An input made from others by a few changes. `words` are pieces that the format knows.
pub fn mutated(
    random: &mut Random,
    corpus: &[Vec<u8>],
    words: &[&str],
    bytes_max: usize,
) -> Vec<u8> {
    let mut bytes = match corpus.len() {
        0 => Vec::new(),
        inputs => corpus[random.below(inputs)].clone(),
    };
    // Mostly few changes: each one makes it likelier that the first check refuses all.
    let rounds = 1 << random.below(5);
    for _ in 0..rounds {
        change(random, &mut bytes, corpus, words);
    }
    bytes.truncate(bytes_max);
    bytes
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&str]) {
    if bytes.is_empty() {
        bytes.extend_from_slice(&random.bits().to_le_bytes());
        return;
    }
    let at = random.below(bytes.len());
    let length = 1 + random.below((bytes.len() - at).min(64));
    match random.below(10) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.bits().to_le_bytes()[0],
        2 => bytes[at] = bytes[at].wrapping_add(random.pick(&[1, 2, 16, 254, 255])),
        3 => drop(bytes.drain(at..at + length)),
        4 => bytes.truncate(at),
        5 => {
            let piece = bytes[at..at + length].to_vec();
            insert(bytes, random, &piece);
        }
        6 => {
            let width = random.pick(&[1, 2, 4, 8]).min(bytes.len() - at);
            let number = random.pick(&NUMBERS);
            let number = if random.chance(30) {
                number.to_be_bytes()[8 - width..].to_vec()
            } else {
                number.to_le_bytes()[..width].to_vec()
            };
            bytes[at..at + width].copy_from_slice(&number);
        }
        7 if !words.is_empty() => {
            let word = random.pick(words);
            insert(bytes, random, word.as_bytes());
        }
        8 if !corpus.is_empty() => {
            // The head of this one and the tail of another.
            let other = &corpus[random.below(corpus.len())];
            let from = random.below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        _ => {
            let piece: Vec<u8> = (0..length)
                .map(|_| random.bits().to_le_bytes()[0])
                .collect();
            bytes[at..at + length].copy_from_slice(&piece);
        }
    }
}

fn insert(bytes: &mut Vec<u8>, random: &mut Random, piece: &[u8]) {
    let at = random.below(bytes.len() + 1);
    bytes.splice(at..at, piece.iter().copied());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_inputs_and_none_is_too_long() {
        let corpus = [b"one".to_vec(), vec![7; 90]];
        let inputs = |seed| {
            let mut random = Random::new(seed);
            (0..500)
                .map(|_| mutated(&mut random, &corpus, &["word"], 100))
                .collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
        assert!(inputs(1).iter().all(|input| input.len() <= 100));
        let with_word = inputs(1).into_iter().filter(|input| {
            let mut windows = input.windows(4);
            windows.any(|window| window == b"word")
        });
        assert!(with_word.count() > 10);
    }
}
