//! Speaking with the kernel's netfilter: nf_tables and connection tracking, by netlink. Not by the
//! `nft` program: it reads all sets of the table whenever it runs, which at a thousand groups
//! takes many times longer than the change itself.

pub mod attributes;
pub mod batch;
pub mod compare;
pub mod encode;
pub mod owner;
pub mod read;
pub mod socket;

pub use socket::{NetlinkError, Socket};

/// `NFNL_SUBSYS_CTNETLINK`
pub const CTNETLINK: u16 = 1;
/// `NFNL_SUBSYS_NFTABLES`
pub const NFTABLES: u16 = 10;

/// Message types of nf_tables.
pub mod nft {
    pub const NEWTABLE: u16 = 0;
    pub const GETTABLE: u16 = 1;
    pub const DELTABLE: u16 = 2;
    pub const NEWCHAIN: u16 = 3;
    pub const GETCHAIN: u16 = 4;
    pub const DELCHAIN: u16 = 5;
    pub const NEWRULE: u16 = 6;
    pub const GETRULE: u16 = 7;
    pub const DELRULE: u16 = 8;
    pub const NEWSET: u16 = 9;
    pub const GETSET: u16 = 10;
    pub const DELSET: u16 = 11;
    pub const NEWSETELEM: u16 = 12;
    pub const GETSETELEM: u16 = 13;
    pub const DELSETELEM: u16 = 14;
    pub const GETGEN: u16 = 16;
}
