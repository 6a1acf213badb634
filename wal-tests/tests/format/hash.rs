//! The database hash tells apart what sums of checksums confuse.

use wallaby::wal::{DatabaseHash, PageHash, PageNumber};

fn page(number: u32) -> PageNumber {
    PageNumber::new(number).unwrap()
}

fn hash(images: &[[u8; 512]]) -> DatabaseHash {
    (1..)
        .zip(images)
        .map(|(number, image)| PageHash::of(page(number), image))
        .fold(DatabaseHash::default(), DatabaseHash::with)
}

#[test]
fn the_database_hash_is_no_sum_of_checksums() {
    let sound = [[1; 512], [2; 512], [3; 512]];
    // Two pages in each other's place.
    let swapped = [sound[1], sound[0], sound[2]];
    assert_ne!(hash(&sound), hash(&swapped));
    // The same bits flipped in two pages: CRCs are linear, and their XOR does not notice.
    let mut damaged = sound;
    for image in &mut damaged[..2] {
        image[100] ^= 0x5a;
    }
    assert_ne!(hash(&sound), hash(&damaged));
    // The same page twice instead of not at all.
    assert_ne!(
        hash(&[[7; 512], [7; 512], [3; 512]]),
        hash(&[[0; 512], [0; 512], [3; 512]])
    );
}

#[test]
fn a_page_taken_away_leaves_the_hash_of_the_others() {
    let images = [[1; 512], [2; 512]];
    let second = PageHash::of(page(2), &images[1]);
    assert_eq!(hash(&images).without(second), hash(&images[..1]));
}
