//! Where Enter leads: from a row to its flows, and from a flow to its page.

use sockeye_ctl::protocol::{DnsBy, FlowsArguments, GroupBy, Pair, Protocol};

use super::screen::{Screen, both};
use super::views::View;

/// Where questions go whose answers are looked at.
const DNS_PORT: u16 = 53;

impl Screen {
    /// Where Enter leads.
    pub(crate) fn drill(&self) -> Option<Self> {
        let row = self.rows.get(self.selected)?;
        let name = |column: &str| row.known(column);
        if self.view == View::Flows && !self.is_grouped() {
            let base = FlowsArguments { id: vec![name("id")?], ..FlowsArguments::default() };
            let path = format!("{} > {}", self.path, name("id")?);
            return Some(Self { base, path, page: Some(Box::default()), ..Self::new(View::Flow) });
        }
        let mut base = FlowsArguments::default();
        let label = match self.view {
            View::Peers => {
                if self.is_grouped() {
                    base = both(self.filter.flows.clone(), &self.base);
                }
                let by = self.by.clone()?;
                let label = format!("{} -> {}", row.text("initiator"), row.text("responder"));
                base.pair = Some(Pair { by, initiator: name("initiator"), responder: name("responder") });
                label
            }
            _ if self.is_grouped() => {
                base = both(self.filter.flows.clone(), &self.base);
                choose_group(&mut base, &self.group()?, name("name")?)?
            }
            View::Processes => {
                base.pid.push(u32::try_from(row.number("pid")?).ok()?);
                format!("{}[{}]", row.text("process"), row.text("pid"))
            }
            View::Containers => push(&mut base.container, name("id").or_else(|| name("container"))?, name("container")),
            View::Pods => {
                let full = [name("namespace"), name("pod")].into_iter().flatten().collect::<Vec<_>>().join("/");
                push(&mut base.pod, name("uid")?, Some(full).filter(|full| !full.is_empty()))
            }
            View::Workloads => push(&mut base.workload, name("workload")?, None),
            View::Ports => {
                base.port.push(u16::try_from(row.number("port")?).ok()?);
                base.protocol.push(if row.text("protocol") == "tcp" { Protocol::Tcp } else { Protocol::Udp });
                format!("{}/{}", row.text("protocol"), row.text("port"))
            }
            View::Dns => self.drill_dns(&mut base, name("name")?)?,
            View::Flows | View::Agent | View::Flow => return None,
        };
        // What it did is told by flows that have ended as well.
        let path = format!("{} > {label}", self.path);
        Some(Self { base, path, ended: true, ..Self::new(View::Flows) })
    }

    /// Flows to DNS servers, of whoever asks them; or those to the host that was asked for.
    fn drill_dns(&self, base: &mut FlowsArguments, name: String) -> Option<String> {
        let by = match self.dns_by {
            DnsBy::Process => GroupBy::Process,
            DnsBy::Container => GroupBy::Container,
            DnsBy::Server => GroupBy::Network,
            DnsBy::Name => GroupBy::Name,
            DnsBy::Host => GroupBy::Host,
        };
        if by != GroupBy::Name {
            base.port.push(DNS_PORT);
        }
        choose_group(base, &by, name)
    }
}

fn push(list: &mut Vec<String>, value: String, label: Option<String>) -> String {
    let label = label.unwrap_or_else(|| value.clone());
    list.push(value);
    label
}

/// The flows of one group.
fn choose_group(base: &mut FlowsArguments, by: &GroupBy, name: String) -> Option<String> {
    let label = name.clone();
    match by {
        GroupBy::Process => base.pid = vec![name.strip_suffix(']')?.rsplit_once('[')?.1.parse().ok()?],
        GroupBy::Container => base.container = vec![name],
        GroupBy::Pod => base.pod = vec![name],
        GroupBy::Namespace => base.namespace = vec![name],
        GroupBy::Workload => base.workload = vec![name],
        GroupBy::User => base.user = vec![name],
        GroupBy::Network => base.address = vec![name.parse().ok()?],
        GroupBy::Name => base.name = name.split(" or ").map(str::to_owned).collect(),
        GroupBy::Host => {}
        GroupBy::Service => match name.rsplit_once(':') {
            Some((_, port)) => base.port = vec![port.parse().ok()?],
            None => base.workload = vec![name],
        },
        GroupBy::Image | GroupBy::Slice | GroupBy::Label(_) => return None,
    }
    Some(label)
}
