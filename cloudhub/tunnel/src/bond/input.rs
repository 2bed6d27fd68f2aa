//! What arrives: packets of the peer, and with them what became of ours.

use std::time::Duration;

use bytes::Bytes;

use super::acks::Asks;
use super::frame::{AckBlock, Frame, Reader};
use super::messages::Fragment;
use super::path::{Content, Loss, PathId, PathState, Told};
use super::reorder::Arrival;
use super::streams::Data;
use super::violation::Violation;
use super::{Bond, Event};

impl Bond {
    /// Takes one datagram that arrived on a path. One of a path that is gone is ignored.
    ///
    /// # Errors
    /// A [`Violation`]: the peer broke the rules; close the session and say why.
    pub fn handle_input(&mut self, now: Duration, id: PathId, packet: Bytes) -> Result<(), Violation> {
        self.advance(now);
        let now = self.now;
        let Some(at) = self.index(id) else {
            return Ok(());
        };
        let size = packet.len();
        let (header, mut reader) = Reader::new(packet)?;
        let received = &mut self.paths[at].received;
        let Some(sequence) = received.sequence(header.sequence)? else {
            return Ok(());
        };
        received.packets += 1;
        received.bytes += size as u64;
        let (mut asks, mut taken, mut is_probe) = (Asks::Nothing, true, false);
        while let Some(frame) = reader.next()? {
            if !matches!(frame, Frame::Ack(_)) {
                asks = Asks::Soon;
            }
            is_probe |= matches!(frame, Frame::Probe);
            taken &= self.handle_frame(now, id, frame)?;
        }
        self.paths[at].heard(now, is_probe);
        if header.ack_now {
            asks = Asks::Now;
        }
        if taken || self.config.faults.refused_acked {
            self.acks.arrived(now, &mut self.paths[at].received, sequence, asks);
        } else {
            self.refused += 1;
        }
        Ok(())
    }

    /// Ok(false) when there is no room for it: it must come again.
    fn handle_frame(&mut self, now: Duration, path: PathId, frame: Frame) -> Result<bool, Violation> {
        match frame {
            Frame::Datagram {
                number,
                flow,
                sequence,
                order,
                part,
                payload,
            } => self.reorder.handle(
                now,
                Arrival {
                    path,
                    number,
                    flow,
                    sequence,
                    order,
                    part,
                    payload,
                },
            ),
            Frame::Message {
                id,
                priority,
                offset,
                size,
                payload,
            } => {
                let fragment = Fragment {
                    id,
                    priority,
                    offset,
                    size,
                    payload,
                };
                self.inbox.handle(&fragment).map(|()| true)
            }
            Frame::Stream {
                id,
                priority,
                offset,
                fin,
                payload,
            } => self.streams.handle_data(Data {
                id,
                priority,
                offset,
                fin,
                payload,
            }),
            Frame::Ack(blocks) => self.handle_ack(now, &blocks).map(|()| true),
            Frame::Probe => Ok(true),
            Frame::Credit { id, offset } => self.streams.handle_credit(now, id, offset).map(|()| true),
            Frame::Reset { id, code } => self.streams.handle_reset(id, code).map(|()| true),
            Frame::Stop { id, code } => self.streams.handle_stop(id, code).map(|()| true),
        }
    }

    fn handle_ack(&mut self, now: Duration, blocks: &[AckBlock]) -> Result<(), Violation> {
        for block in blocks {
            let id = PathId(block.path);
            let Some(at) = self.index(id) else { continue };
            let mut told = Told::default();
            self.paths[at].handle_ack(now, block, &mut told)?;
            if told.readmitted && !self.config.faults.readmit_never {
                self.paths[at].readmit(now);
                self.events.push_back(Event::Path {
                    id,
                    state: PathState::Live,
                });
            }
            for content in told.arrived {
                self.arrived(content);
            }
            for (content, reported) in told.lost {
                self.lost(now, id, content, reported)?;
            }
        }
        Ok(())
    }

    fn arrived(&mut self, content: Content) {
        match content {
            Content::Datagram(number, part) => self.datagrams.acked(number, part),
            Content::Message(id, range) => self.outbox.acked(id, range),
            Content::Stream(id, range, fin) => self.streams.acked(id, range, fin),
            Content::Control(id, control) => self.streams.control_done(id, control, true),
            Content::Probe => {}
        }
    }

    fn lost(&mut self, now: Duration, path: PathId, content: Content, reported: bool) -> Result<(), Violation> {
        if self.config.faults.repair_off {
            return Ok(());
        }
        let loss = Loss { now, path, reported };
        match content {
            Content::Datagram(number, part) => self.datagrams.lost(loss, number, part),
            Content::Message(id, range) => self.outbox.lost(loss, id, range),
            Content::Stream(id, range, fin) => self.streams.lost(loss, id, range, fin),
            Content::Control(id, control) => {
                self.streams.control_done(id, control, false);
                Ok(())
            }
            Content::Probe => Ok(()),
        }
    }

    /// What a path carried that does not answer goes over the others.
    pub(super) fn reinject(&mut self, now: Duration, path: PathId, contents: Vec<Content>) {
        for content in contents {
            self.reinjected += u64::from(content != Content::Probe);
            // Only what the peer reports can be a violation.
            let _ = self.lost(now, path, content, false);
        }
    }
}
