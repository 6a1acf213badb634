//! The WAL-index: headers and regions of any content, and regions filled by calls in any order,
//! compared with a plain list of frames.

use wallaby::wal::index::{
    INDEX_HEADER_BYTES, REGION_BYTES, Region, append, clean_up, entries_in, frames_before,
    is_occupied, lookup, region_of_frame,
};
use wallaby::wal::{IndexHeader, PageNumber};

use crate::memory::{Bound, bounded};
use crate::script::Script;
use crate::{Reached, Sample};

/// See the module.
///
/// # Panics
/// If a region does not answer like the list.
pub fn wal_index(data: &[u8]) -> Reached {
    let mut script = Script::new(data);
    if script.byte().is_multiple_of(2) {
        bounded(Bound::NOTHING, data.len(), || any_bytes(script.rest()))
    } else {
        calls(&mut script)
    }
}

fn any_bytes(bytes: &[u8]) -> Reached {
    let header = IndexHeader::parse_copies(bytes);
    if let Ok(header) = &header {
        assert_eq!(IndexHeader::parse(&header.encode()), Ok(*header));
        assert_eq!(IndexHeader::parse(bytes), Ok(*header));
    }
    let mut region = [0; REGION_BYTES];
    if !bytes.is_empty() {
        for piece in region.chunks_mut(bytes.len()) {
            piece.copy_from_slice(&bytes[..piece.len()]);
        }
    }
    let number = bytes.first().copied().unwrap_or(1).max(1);
    let page = PageNumber::new(number.into()).expect("not zero");
    for index in [0, 1] {
        // Whatever the answer is, there is one.
        let found = lookup(&region, index, page, u32::MAX);
        let last = frames_before(index) + u32::from(entries_in(index));
        if let Ok(Some(frame)) = found {
            assert!(frame > frames_before(index) && frame <= last, "{frame}");
        }
        let place = region_of_frame(frames_before(index) + 2);
        let _ = is_occupied(&region, place);
        let _ = append(&mut region, place, page);
        clean_up(&mut region, frames_before(index) + 1);
        assert!(!is_occupied(&region, place));
    }
    Reached::accepted(header.is_ok())
}

fn calls(script: &mut Script<'_>) -> Reached {
    let region_index = u32::from(script.byte() % 2);
    let before = frames_before(region_index);
    let mut region: Box<Region> = Box::new([script.byte(); REGION_BYTES]);
    // The page of each frame that is entered, from the first of the region on.
    let mut model: Vec<u32> = Vec::new();
    let mut lookups = 0;
    for _ in 0..CALLS_MAX {
        if script.is_empty() {
            break;
        }
        let call = script.byte();
        // Few pages, many of which share a slot: the hash is of 13 bits.
        let number = u32::from(script.byte() % 32) * if call < 128 { 8192 } else { 1 } + 1;
        let page = PageNumber::new(number).expect("not zero");
        match call % 4 {
            0 | 1 if model.len() < usize::from(entries_in(region_index)) => {
                let frame = before + length(&model) + 1;
                append(&mut region, region_of_frame(frame), page).expect("there is room");
                assert!(is_occupied(&region, region_of_frame(frame)));
                model.push(number);
            }
            2 if !model.is_empty() => {
                // Rolled back to one of the frames, which stays.
                model.truncate(1 + script.below(model.len()));
                clean_up(&mut region, before + length(&model));
            }
            _ if !model.is_empty() => {
                let visible = 1 + script.below(model.len());
                let frame_max = before + u32::try_from(visible).expect("few");
                let found = lookup(&region, region_index, page, frame_max);
                let last = model[..visible].iter().rposition(|found| *found == number);
                let expected = last.map(|at| before + 1 + u32::try_from(at).expect("few"));
                assert_eq!(found, Ok(expected), "page {number} up to {frame_max}");
                lookups += 1;
            }
            _ => {}
        }
    }
    Reached::accepted(lookups > 0)
}

fn length(model: &[u32]) -> u32 {
    u32::try_from(model.len()).expect("a region has few frames")
}

pub(crate) fn samples() -> Vec<Sample> {
    let header = IndexHeader {
        change: 5,
        order: wallaby::wal::ByteOrder::Little,
        page_size: wallaby::wal::PageSize::new(4096),
        frame_max: 9,
        page_count: wallaby::wal::PageCount(4),
        frame_checksum: wallaby::wal::Checksum { s0: 1, s1: 2 },
        salts: wallaby::wal::Salts([3; 8]),
    };
    let copy = header.encode();
    let mut torn = [copy, copy].concat();
    torn[INDEX_HEADER_BYTES + 8] ^= 1;
    // Appends of pages that collide, lookups, and a roll-back.
    let calls: Vec<u8> = (0..40_u8)
        .flat_map(|at| {
            [
                [0, at],
                [129, at % 5],
                [3, at],
                [if at % 9 == 8 { 2 } else { 7 }, at],
            ]
        })
        .flatten()
        .collect();
    let raw = |bytes: &[u8]| [&[0], bytes].concat();
    vec![
        Sample::new("header", raw(&[copy, copy].concat())),
        Sample::new("header-torn", raw(&torn)),
        Sample::new("full-slots", raw(&[0xff; 40])),
        Sample::new("empty", raw(&[0; 96])),
        Sample::new("calls-first-region", [&[1, 0, 0xee], &calls[..]].concat()),
        Sample::new("calls-later-region", [&[1, 1, 0], &calls[..]].concat()),
    ]
}

/// Each may look at all slots of a region.
const CALLS_MAX: usize = 200;
