//! A file that a caller sends in pieces: pieces come in on a thread that serves the API and are
//! read on one that may block.
//!
//! The end of the stream is itself a piece. So a call that is cut off, which merely stops
//! sending, is never taken for a file that has come to its end.

use std::io::{self, Read};

use tokio::sync::mpsc;

use crate::error::{ApiError, ApiResult, Reason};

/// Largest piece, in bytes.
pub const MAX_PIECE: usize = 1 << 20;

/// Pieces that may wait to be read.
const WAITING: usize = 4;

/// A piece.
#[derive(Debug)]
enum Piece {
    Data(Vec<u8>),
    End,
}

/// The side that gets the pieces.
#[derive(Debug)]
pub struct Feed(mpsc::Sender<Piece>);

/// The side that reads them.
#[derive(Debug)]
pub struct Body {
    pieces: mpsc::Receiver<Piece>,
    current: io::Cursor<Vec<u8>>,
    ended: bool,
    /// Bytes that the caller said would come.
    declared: u64,
    /// Bytes that were read.
    read: u64,
}

/// Both sides of a stream of `declared` bytes.
pub fn channel(declared: u64) -> (Feed, Body) {
    let (sender, pieces) = mpsc::channel(WAITING);
    let body = Body {
        pieces,
        current: io::Cursor::default(),
        ended: false,
        declared,
        read: 0,
    };
    (Feed(sender), body)
}

impl Feed {
    /// Passes a piece on; false when nobody reads any more.
    pub async fn data(&self, data: Vec<u8>) -> ApiResult<bool> {
        if data.len() > MAX_PIECE {
            return Err(ApiError::invalid(
                "data",
                format!(
                    "{} bytes are too many for one message; at most {MAX_PIECE}",
                    data.len()
                ),
            ));
        }
        Ok(self.0.send(Piece::Data(data)).await.is_ok())
    }

    /// Says that the stream came to its proper end.
    pub async fn end(self) {
        // A reader that is gone has seen enough.
        let _ = self.0.send(Piece::End).await;
    }
}

impl Body {
    /// Checks that nothing comes after what was declared.
    pub fn finish(mut self) -> ApiResult<()> {
        let mut extra = [0u8; 1];
        match self.read(&mut extra) {
            Ok(0) => Ok(()),
            Ok(_) => Err(ApiError::invalid(
                "data",
                format!(
                    "the stream holds more than the {} bytes that the header says",
                    self.declared
                ),
            )),
            Err(_) => Err(self.incomplete()),
        }
    }

    /// The error to give instead of `otherwise`, when reading failed because the stream ended
    /// too early.
    pub fn or_incomplete(&self, otherwise: ApiError) -> ApiError {
        let used_up = self.current.position() >= self.current.get_ref().len() as u64;
        let cut_off = self.pieces.is_closed() && self.pieces.is_empty() && !self.ended;
        if self.read < self.declared && used_up && (self.ended || cut_off) {
            return self.incomplete();
        }
        otherwise
    }

    fn incomplete(&self) -> ApiError {
        ApiError::field(
            Reason::IncompleteBody,
            "data",
            format!(
                "the stream ended after {} of {} bytes",
                self.read, self.declared
            ),
        )
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.current.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                self.read += count as u64;
                return Ok(count);
            }
            if self.ended {
                return Ok(0);
            }
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.current = io::Cursor::new(data),
                Some(Piece::End) => self.ended = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the stream was cut off",
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_thread<T: Send + 'static>(
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        std::thread::spawn(work)
    }

    #[tokio::test]
    async fn pieces_become_one_stream() {
        let (feed, mut body) = channel(6);
        let reader = in_thread(move || {
            let mut text = String::new();
            (&mut body).take(6).read_to_string(&mut text).expect("read");
            body.finish().expect("nothing more");
            text
        });
        for piece in ["ab", "", "cdef"] {
            assert!(feed.data(piece.into()).await.expect("small"));
        }
        feed.end().await;
        assert_eq!(reader.join().expect("thread"), "abcdef");
    }

    #[tokio::test]
    async fn a_stream_that_is_cut_off_is_an_error_and_not_an_end() {
        for proper_end in [false, true] {
            let (feed, mut body) = channel(6);
            let reader = in_thread(move || {
                let read = io::copy(&mut body, &mut io::sink());
                (
                    read.is_err(),
                    body.or_incomplete(ApiError::invalid("other", "other")),
                )
            });
            feed.data("abc".into()).await.expect("small");
            if proper_end {
                feed.end().await;
            } else {
                drop(feed);
            }
            let (failed, error) = reader.join().expect("thread");
            assert_eq!(failed, !proper_end);
            assert_eq!(error.reason(), Reason::IncompleteBody);
            assert!(error.message().contains("3 of 6"), "{error}");
        }
    }

    #[tokio::test]
    async fn more_than_declared_is_refused() {
        let (feed, mut body) = channel(2);
        feed.data("abc".into()).await.expect("small");
        let reader = in_thread(move || {
            io::copy(&mut (&mut body).take(2), &mut io::sink()).expect("read");
            body.finish()
        });
        assert_eq!(
            reader.join().expect("thread").expect_err("more").fields(),
            ["data"]
        );
        drop(feed);
    }

    #[tokio::test]
    async fn a_piece_that_is_too_large_is_refused() {
        let (feed, _body) = channel(2);
        let error = feed.data(vec![0; MAX_PIECE + 1]).await.expect_err("large");
        assert_eq!(error.fields(), ["data"]);
    }
}
