//! Ethernet frames, as far as a switch has to know them.

use crate::seed::Random;

/// The hardware address of a place. The first byte says: given out locally, to one place only.
pub(super) fn hardware_address(subnet: u8, place: usize) -> [u8; 6] {
    let place = u8::try_from(place).expect("a switch has few places");
    [0x02, b'W', b'A', b'L', subnet, place]
}

/// The place that a frame is for; `None` for what is for everybody or for nobody here, such as the
/// announcements of IPv6.
pub(super) fn destination(frame: &[u8], subnet: u8) -> Option<usize> {
    let place = usize::from(*frame.get(5)?);
    (frame[..6] == hardware_address(subnet, place)).then_some(place)
}

/// Flips one bit. In a datagram of UDP that is one of the payload, and the checksum goes, so that
/// the system delivers it and whoever receives it has to notice. Anything else the system itself
/// finds damaged and drops.
pub(super) fn corrupt(frame: &mut [u8], random: &mut Random) {
    let payload = match udp(frame) {
        Some(header) => {
            // No checksum, says RFC 768.
            frame[header + 6..header + 8].fill(0);
            header + 8
        }
        None => ETHERNET_BYTES,
    };
    if payload < frame.len() {
        let at = payload + random.below(frame.len() - payload);
        frame[at] ^= 1 << random.below(8);
    }
}

/// Where the UDP header of a frame begins, if it has one and nothing is split.
fn udp(frame: &[u8]) -> Option<usize> {
    let is_ipv4 = frame.get(12..14)? == [0x08, 0x00] && frame.get(14)? >> 4 == 4;
    let is_whole = u16::from_be_bytes([*frame.get(20)?, *frame.get(21)?]) & 0x3fff == 0;
    let is_udp = *frame.get(23)? == 17;
    let header = ETHERNET_BYTES + usize::from(frame[14] & 0x0f) * 4;
    (is_ipv4 && is_whole && is_udp && frame.len() > header + 8).then_some(header)
}

/// Destination, source and kind.
const ETHERNET_BYTES: usize = 14;

#[cfg(test)]
mod tests {
    use super::*;

    /// A datagram of four bytes from place 1 to place 2 of subnet 7.
    fn datagram() -> Vec<u8> {
        let mut frame = hardware_address(7, 2).to_vec();
        frame.extend(hardware_address(7, 1));
        frame.extend([0x08, 0x00]);
        frame.extend([0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0]);
        frame.extend([198, 18, 7, 2, 198, 18, 7, 3]);
        frame.extend([0x10, 0, 0x20, 0, 0, 12, 0xab, 0xcd]);
        frame.extend(b"data");
        frame
    }

    #[test]
    fn a_frame_says_whom_it_is_for() {
        let mut frame = datagram();
        assert_eq!(destination(&frame, 7), Some(2));
        assert_eq!(destination(&frame, 8), None);
        assert_eq!(destination(&frame[..5], 7), None);
        frame[..6].fill(0xff);
        assert_eq!(destination(&frame, 7), None);
    }

    #[test]
    fn a_corrupted_datagram_has_one_other_bit_in_its_payload_and_no_checksum() {
        let mut random = Random::new(1);
        for _ in 0..100 {
            let mut frame = datagram();
            corrupt(&mut frame, &mut random);
            let end = frame.len() - 4;
            assert_eq!(frame[end - 2..end], [0, 0]);
            assert_eq!(frame[..end - 2], datagram()[..end - 2]);
            let flipped: u32 = frame[end..]
                .iter()
                .zip(b"data")
                .map(|(one, other)| (one ^ other).count_ones())
                .sum();
            assert_eq!(flipped, 1);
        }
    }

    #[test]
    fn what_is_no_datagram_is_damaged_behind_its_addresses() {
        let mut random = Random::new(1);
        for length in 0..60 {
            let mut frame = vec![0x55; length];
            corrupt(&mut frame, &mut random);
            let flipped: u32 = frame.iter().map(|byte| (byte ^ 0x55).count_ones()).sum();
            assert_eq!(flipped, u32::from(length > ETHERNET_BYTES));
            assert!(frame.iter().take(ETHERNET_BYTES).all(|&byte| byte == 0x55));
        }
    }
}
