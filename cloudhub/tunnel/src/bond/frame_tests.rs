//! Golden bytes, round trips and mangled bytes of every frame.

use super::*;

fn packet(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = Header {
        ack_now: true,
        sequence: 0x0102_0304,
    };
    put_header(&mut bytes, header);
    for frame in frames {
        put(&mut bytes, frame);
    }
    bytes
}

fn read(bytes: &[u8]) -> Result<(Header, Vec<Frame>), FrameError> {
    let (header, mut reader) = Reader::new(Bytes::copy_from_slice(bytes))?;
    let mut frames = Vec::new();
    while let Some(frame) = reader.next()? {
        frames.push(frame);
    }
    Ok((header, frames))
}

fn examples() -> Vec<(Frame, Vec<u8>)> {
    let datagram = Frame::Datagram {
        number: 7,
        flow: 0x3005,
        sequence: 9,
        order: Order::Long,
        part: Part::Second,
        payload: Bytes::from_static(b"ip"),
    };
    let message = Frame::Message {
        id: 258,
        priority: Priority::Interactive,
        offset: 1200,
        size: 65_536,
        payload: Bytes::from_static(b"abc"),
    };
    let stream = Frame::Stream {
        id: 3,
        priority: Priority::Bulk,
        offset: 0x4000,
        fin: true,
        payload: Bytes::from_static(b"x"),
    };
    let ack = Frame::Ack(vec![AckBlock {
        path: 2,
        largest: 100,
        delay: Duration::from_micros(160),
        ranges: vec![0..3, 4..5],
    }]);
    vec![
        (ack, vec![0x30, 1, 2, 0, 0, 0, 100, 0, 10, 1, 2, 0, 0]),
        (Frame::Probe, vec![0x31]),
        (Frame::Credit { id: 3, offset: 65 }, vec![0x32, 3, 0x40, 65]),
        (Frame::Reset { id: 64, code: 5 }, vec![0x33, 0x40, 64, 0, 0, 0, 5]),
        (Frame::Stop { id: 1, code: 6 }, vec![0x34, 1, 0, 0, 0, 6]),
        (
            message,
            vec![0x11, 0, 0, 1, 2, 0x04, 0xb0, 0xff, 0xff, 0, 3, b'a', b'b', b'c'],
        ),
        (stream, vec![0x27, 3, 0x80, 0, 0x40, 0, 0, 1, b'x']),
        (datagram, vec![0x0a, 0, 0, 0, 7, 0x30, 5, 0, 0, 0, 9, b'i', b'p']),
    ]
}

#[test]
fn every_frame_has_golden_bytes() {
    let mut all = vec![0x41, 1, 2, 3, 4];
    for (frame, golden) in examples() {
        let bytes = packet(std::slice::from_ref(&frame));
        assert_eq!(bytes[HEADER..], golden, "{frame:?}");
        assert_eq!(read(&bytes).unwrap().1, [frame]);
        all.extend(golden);
    }
    let frames: Vec<Frame> = examples().into_iter().map(|(frame, _)| frame).collect();
    assert_eq!(packet(&frames), all);
    let (header, back) = read(&all).unwrap();
    assert!(header.ack_now && header.sequence == 0x0102_0304);
    assert_eq!(back, frames);
    assert_eq!(DATAGRAM_OVERHEAD, 16);
}

#[test]
fn an_empty_message_and_a_whole_one_are_told_apart() {
    for payload in [Bytes::new(), Bytes::from_static(b"x")] {
        let frame = Frame::Message {
            id: 1,
            priority: Priority::Urgent,
            offset: 0,
            size: payload.len(),
            payload,
        };
        assert_eq!(read(&packet(std::slice::from_ref(&frame))).unwrap().1, [frame]);
    }
}

#[test]
fn mangled_packets_are_errors_or_other_packets_and_never_a_panic() {
    let frames: Vec<Frame> = examples().into_iter().map(|(frame, _)| frame).collect();
    let bytes = packet(&frames);
    for cut in 0..bytes.len() {
        let _ = read(&bytes[..cut]);
        for bit in 0..8 {
            let mut mangled = bytes.clone();
            mangled[cut] ^= 1 << bit;
            let _ = read(&mangled);
        }
    }
    for cut in 0..HEADER {
        assert_eq!(read(&bytes[..cut]), Err(FrameError::Short));
    }
    assert_eq!(read(&[0x80, 0, 0, 0, 1]), Err(FrameError::Unknown(0x80)));
    let crowd = packet(&vec![Frame::Probe; MAX_FRAMES + 1]);
    assert_eq!(read(&crowd), Err(FrameError::Limit("frames")));
    let many_blocks = [0x40, 0, 0, 0, 1, 0x30, 200];
    assert_eq!(read(&many_blocks), Err(FrameError::Limit("blocks")));
    let many_ranges = [0x40, 0, 0, 0, 1, 0x30, 1, 0, 0, 0, 0, 1, 0, 0, 255];
    assert_eq!(read(&many_ranges), Err(FrameError::Limit("ranges")));
    let far = [
        0x40, 0, 0, 0, 1, 0x30, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0xff, 255, 255, 255, 255, 255, 255, 255,
    ];
    assert_eq!(read(&far), Err(FrameError::Limit("a range")));
    let too_long = [0x40, 0, 0, 0, 1, 0x10, 0, 0, 0, 1, 0, 9, 0, 9, 0, 2, 1, 1];
    assert_eq!(read(&too_long), Err(FrameError::Limit("a message's size")));
}
