//! What runs in a guest, as its kernel tells it.

use std::collections::BTreeMap;

use kit::wait::State;
use kit::wait_for;
use machines::Guest;

use crate::LONG;

/// Where a guest keeps what pods need.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    /// The folder of the pods' cgroups.
    pub(crate) cgroup: &'static str,
    /// Where host-local keeps its leases.
    pub(crate) leases: &'static str,
}

/// A container's process, with what it sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its pod's uid.
    pub(crate) uid: String,
    /// Its pid in the guest.
    pub(crate) pid: u32,
    pub(crate) command: String,
    /// What is in the files that were asked for; empty where one is not there.
    pub(crate) files: Vec<String>,
}

/// The service account token of a container.
pub(crate) const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// All processes of pods but `pause`, with these of their files.
pub(crate) fn processes(guest: &Guest, places: Places, files: &[&str]) -> Result<Vec<Process>, String> {
    let mut script = format!(
        "for f in $(find {} -name cgroup.procs 2>/dev/null); do for p in $(cat $f 2>/dev/null); do \
         c=$(tr '\\0' ' ' 2>/dev/null </proc/$p/cmdline); [ \"$c\" ] || continue; echo \"@$f|$p|$c\"; ",
        places.cgroup
    );
    for file in files {
        script.push_str(&format!("cat /proc/$p/root{file} 2>/dev/null | tr '\\n' ' '; echo; "));
    }
    script.push_str("done; done");
    let text = guest.sh(&script).map_err(|error| format!("{error:#}"))?;
    let mut found = Vec::new();
    for block in text.split('@').skip(1) {
        let mut lines = block.lines();
        let mut head = lines.next().unwrap_or_default().splitn(3, '|');
        let (Some(cgroup), Some(pid), Some(command)) = (head.next(), head.next(), head.next()) else {
            return Err(format!("not a process: {block}"));
        };
        if command.starts_with("/pause") {
            continue;
        }
        let part = cgroup.split('/').find_map(|part| part.strip_prefix("pod"));
        found.push(Process {
            uid: part.unwrap_or_default().to_owned(),
            pid: pid.parse().map_err(|_| format!("not a pid: {block}"))?,
            command: command.trim().to_owned(),
            files: lines.map(|line| line.trim().to_owned()).collect(),
        });
    }
    Ok(found)
}

/// Waits until the processes are as wanted.
pub(crate) fn wait_processes(
    guest: &Guest,
    (places, files): (Places, &[&str]),
    what: &str,
    done: impl Fn(&[Process]) -> bool,
) -> Vec<Process> {
    let (found, _) = wait_for(what, LONG, || match processes(guest, places, files) {
        Ok(all) if done(&all) => State::Done(all),
        Ok(all) => State::Not(format!("{all:?}")),
        Err(error) => State::Not(error),
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", logs(guest)));
    found
}

/// How much there is of what a pod's end, or a reset, must give back.
pub(crate) fn resources(guest: &Guest, places: Places) -> Result<BTreeMap<String, usize>, String> {
    let script = format!(
        "echo mounts $(wc -l </proc/self/mountinfo); echo netns $(grep -c ' - nsfs ' /proc/self/mountinfo); \
         echo cgroups $(find {} -type d | wc -l); echo leases $(ls {} | grep -c '^[0-9]'); \
         echo results $(ls /var/lib/cni/results | wc -l); echo links $(ls /sys/class/net | wc -l)",
        places.cgroup, places.leases
    );
    let text = guest.sh(&script).map_err(|error| format!("{error:#}"))?;
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    Ok(pairs
        .filter_map(|(name, count)| Some((name.to_owned(), count.parse().ok()?)))
        .collect())
}

/// Waits until there is no more than `wanted`.
pub(crate) fn wait_resources(
    guest: &Guest,
    places: Places,
    what: &str,
    wanted: impl Fn(&BTreeMap<String, usize>) -> bool,
) -> BTreeMap<String, usize> {
    let (found, _) = wait_for(what, LONG, || match resources(guest, places) {
        Ok(now) if wanted(&now) => State::Done(now),
        Ok(now) => State::Not(format!("{now:?}")),
        Err(error) => State::Not(error),
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", logs(guest)));
    found
}

/// The ends of the logs of what is ours in a guest.
pub(crate) fn logs(guest: &Guest) -> String {
    let script = "tail -n 30 /var/lib/kedge-up/logs/*.log 2>/dev/null; journalctl -b --no-pager 2>/dev/null | grep -v qemu-ga | tail -n 40; systemctl --failed --no-pager";
    match guest.try_sh(script, LONG) {
        Ok(ended) => format!("{}{}", ended.stdout, ended.stderr),
        Err(error) => format!("{error:#}\n{}", guest.tail()),
    }
}
