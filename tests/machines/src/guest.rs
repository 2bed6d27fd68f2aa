//! One guest machine: qemu's software emulation in the test's hub namespace.
//!
//! ```text
//! base.raw ◄─ overlay.qcow2 ─ vda ┐        ┌ ttyS0 → NAME-console.log
//! other drives ────────── vdb… ───┤ qemu ──┼ virtio-serial → NAME.qga → agent
//!                                 ┘        └ virtio-net → tap eN of the hub's namespace
//! ```
//!
//! [`Guest::reset`] is kill -9 of qemu and a new start: memory, mounts and processes are gone, what reached the disks stays. Limits are
//! five times what an idle machine of two cores needs: emulation takes the whole of it.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kit::process::{Daemon, run};
use kit::wait::State;
use kit::{Site, wait_for};
use nix::sys::signal::Signal;

use crate::agent::{Agent, Ended};
use crate::image::{self, Arch};
use crate::volatile::VolatileDisk;

/// 12-18 s on an idle machine.
const BOOT: Duration = Duration::from_secs(150);
/// One question while the guest boots: the agent may not be there yet.
const PING: Duration = Duration::from_secs(2);
/// How long a command in the guest may take that does nothing special.
const COMMAND: Duration = Duration::from_secs(60);

/// A drive beside the system's.
#[derive(Debug)]
pub enum Drive {
    /// A raw file that is not written.
    ReadOnly(PathBuf),
    /// A disk that loses its cache when the guest is reset.
    Volatile(VolatileDisk),
}

/// What a guest has.
#[derive(Debug)]
pub struct Spec {
    /// Its processor.
    pub arch: Arch,
    /// Its memory, MiB.
    pub memory: u32,
    /// Number of its link to the hub (10.99.N.2), when it has one.
    pub link: Option<u8>,
    /// /dev/vdb and on.
    pub drives: Vec<Drive>,
}

/// A guest machine; qemu is killed on drop.
#[derive(Debug)]
pub struct Guest<'a> {
    site: &'a Site,
    name: String,
    spec: Spec,
    base: PathBuf,
    qemu: Option<Daemon>,
    agent: RefCell<Agent>,
}

impl<'a> Guest<'a> {
    /// Makes a machine on a fresh overlay of its base image and boots it.
    ///
    /// # Errors
    /// When there is no image, or it does not boot: the text holds the end of its console.
    pub fn boot(site: &'a Site, name: &str, spec: Spec) -> Result<Self> {
        let base = image::base(spec.arch)?;
        if let Some(number) = spec.link {
            site.tap(number)?;
        }
        let mut guest = Self {
            site,
            name: name.to_owned(),
            agent: RefCell::new(Agent::new(&site.dir().join(format!("{name}.qga")))),
            spec,
            base,
            qemu: None,
        };
        let raw = guest.base.join("base.raw");
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(&raw)
            .arg(guest.file("qcow2")))?;
        guest.power_on()?;
        Ok(guest)
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.site.dir().join(format!("{}.{kind}", self.name))
    }

    /// Starts qemu and waits until the agent answers; the time that it took.
    ///
    /// # Errors
    /// When it does not boot in time: the text holds the end of its console.
    pub fn power_on(&mut self) -> Result<Duration> {
        for drive in &mut self.spec.drives {
            if let Drive::Volatile(disk) = drive {
                disk.power_on()?;
            }
        }
        let begun = Instant::now();
        let log = self.file("qemu.log");
        self.qemu = Some(Daemon::spawn(&self.name, &mut self.command(), &log)?);
        self.agent.replace(Agent::new(&self.file("qga")));
        wait_for(&format!("guest {} has booted", self.name), BOOT, || {
            match self.agent.borrow_mut().ping(PING) {
                Ok(()) => State::Done(()),
                Err(error) => State::Not(format!("{error:#}\n{}", self.tail())),
            }
        })?;
        Ok(begun.elapsed())
    }

    /// The power goes, for all parts at once: what disks with a volatile cache had not flushed is lost.
    pub fn power_off(&mut self) {
        let Some(mut qemu) = self.qemu.take() else { return };
        let disks = self.spec.drives.iter_mut().filter_map(|drive| match drive {
            Drive::Volatile(disk) => Some(disk),
            Drive::ReadOnly(_) => None,
        });
        let mut disks: Vec<_> = disks.collect();
        // Held first: neither sees the other die.
        qemu.signal(Signal::SIGSTOP);
        for disk in &mut disks {
            disk.freeze();
        }
        for disk in &mut disks {
            disk.power_off();
        }
        qemu.kill();
    }

    /// Power off and on again: kill -9 and a new start. The time until the agent answers.
    ///
    /// # Errors
    /// When it does not boot in time.
    pub fn reset(&mut self) -> Result<Duration> {
        self.power_off();
        self.power_on()
    }

    fn command(&self) -> Command {
        let (program, machine, console): (_, &[&str], _) = match self.spec.arch {
            Arch::Amd64 => (
                "qemu-system-x86_64",
                &["-machine", "q35", "-cpu", "max"],
                "console=ttyS0 mitigations=off",
            ),
            // `-cpu max` is twice as slow.
            Arch::Arm64 => (
                "qemu-system-aarch64",
                &["-machine", "virt", "-cpu", "cortex-a72"],
                "console=ttyAMA0",
            ),
        };
        let mut append = format!(
            "{console} root=/dev/vda quiet loglevel=4 panic=-1 systemd.show_status=0 random.trust_cpu=on nokaslr net.ifnames=0"
        );
        let mut command = self.site.command("hub", Path::new(program));
        command.args(["-nodefaults", "-no-user-config", "-nographic"]);
        command.args(machine).args(["-accel", "tcg,thread=multi", "-smp", "2"]);
        command.args(["-m", &self.spec.memory.to_string()]);
        command.arg("-kernel").arg(self.base.join("vmlinuz"));
        command.arg("-initrd").arg(self.base.join("initrd"));
        command
            .arg("-serial")
            .arg(format!("file:{}", self.file("console.log").display()));
        command.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
        command.arg("-chardev").arg(format!(
            "socket,path={},server=on,wait=off,id=qga",
            self.file("qga").display()
        ));
        command.args(["-device", "virtserialport,chardev=qga,name=org.qemu.guest_agent.0"]);
        let system = format!(
            "file={},format=qcow2,cache=writeback,discard=unmap",
            self.file("qcow2").display()
        );
        add_drive(&mut command, 0, &system);
        for (number, drive) in self.spec.drives.iter().enumerate() {
            let what = match drive {
                Drive::ReadOnly(file) => format!("file={},format=raw,readonly=on", file.display()),
                Drive::Volatile(disk) => {
                    format!("file=nbd+unix:///?socket={},format=raw", disk.socket().display())
                }
            };
            add_drive(&mut command, number + 1, &what);
        }
        if let Some(number) = self.spec.link {
            command
                .arg("-netdev")
                .arg(format!("tap,id=n0,ifname=e{number},script=no,downscript=no"));
            command.args(["-device", "virtio-net-pci,netdev=n0,romfile="]);
            append.push_str(&format!(" kedge.link=10.99.{number}.2/24,10.99.{number}.1"));
        }
        command.arg("-append").arg(append);
        command
    }

    /// Runs `script` by bash, to its end, whatever the end.
    ///
    /// # Errors
    /// When the agent does not answer or the script does not end within `within`.
    pub fn try_sh(&self, script: &str, within: Duration) -> Result<Ended> {
        let path =
            "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8; cd /;";
        let whole = format!("{path} {script}");
        self.agent.borrow_mut().exec("/bin/bash", &["-c", &whole], within)
    }

    /// Runs `script` by bash; what it printed.
    ///
    /// # Errors
    /// When it fails: the text holds what it said.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.sh_within(script, COMMAND)
    }

    /// The same for a script that takes its time.
    ///
    /// # Errors
    /// When it fails or does not end within `within`.
    pub fn sh_within(&self, script: &str, within: Duration) -> Result<String> {
        let ended = self.try_sh(script, within)?;
        if ended.code != Some(0) {
            bail!("in guest {}: {script}: {ended:?}", self.name);
        }
        Ok(ended.stdout)
    }

    /// Writes a small file in the guest, and its folders.
    ///
    /// # Errors
    /// When it cannot.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        // Nothing in a quoted here-document is special but its end.
        if text.lines().any(|line| line == "END-OF-FILE") {
            bail!("{path} has a line END-OF-FILE");
        }
        self.sh(&format!(
            "mkdir -p \"$(dirname {path})\" && cat >{path} <<'END-OF-FILE'\n{text}\nEND-OF-FILE"
        ))
        .with_context(|| format!("write {path}"))?;
        Ok(())
    }

    /// Cuts or restores its link, at the host's end.
    ///
    /// # Errors
    /// When it has none, or iproute2 fails.
    pub fn set_link(&self, up: bool) -> Result<()> {
        let number = self.spec.link.context("the guest has a link")?;
        self.site.set_link(number, up)
    }

    /// The ends of its console and of qemu's log, for error texts.
    #[must_use]
    pub fn tail(&self) -> String {
        let console = fs::read(self.file("console.log")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().collect();
        let from = lines.len().saturating_sub(30);
        let qemu = self.qemu.as_ref().map(Daemon::tail).unwrap_or_default();
        format!("--- console of {}\n{}\n{qemu}", self.name, lines[from..].join("\n"))
    }
}

fn add_drive(command: &mut Command, number: usize, what: &str) {
    command.arg("-drive").arg(format!("{what},if=none,id=d{number}"));
    command.arg("-device").arg(format!("virtio-blk-pci,drive=d{number}"));
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.power_off();
    }
}
