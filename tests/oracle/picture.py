#!/usr/bin/python3
"""Pictures of what a collector knows of flows, as ntopng's list of flows and its page of one flow arrange it. SVG, without libraries.

usage: picture.py FLOWS.json FOLDER [LOCAL_PORT]     FLOWS.json: a list of flows as collector.py reports them
"""
import html
import json
import sys

LINE, CHAR, LEFT = 22, 7.9, 16
COLUMNS = (("Application", 120), ("Client", 330), ("Server", 330), ("Duration", 90), ("Throughput", 110), ("Bytes", 100), ("Info", 230))
PROTOCOLS = {6: "TCP", 17: "UDP"}


def amount(number, units=("B", "kB", "MB", "GB")):
    for unit in units:
        if number < 1000 or unit == units[-1]:
            return f"{number:.0f} {unit}" if unit == units[0] else f"{number:.2f} {unit}"
        number /= 1000


def end(flow, side):
    process, container = flow.get(f"{side}_proc"), flow.get(f"{side}_container")
    name = f"{flow.get(side + '_addr')}:{flow.get(side + '_port')}"
    where = f" @{container}" if container else ""
    return f"{name} [{process.rsplit('/', 1)[-1]}{where}]" if process else name


def info(flow):
    return flow.get("dns_query") or flow.get("tls_server_name") or flow.get("57833") or flow.get("Server Name", "").split(" (")[0]


def bytes_of(flow):
    return flow.get("in_bytes", 0) + flow.get("out_bytes", 0)


class Svg:
    def __init__(self, width):
        self.width, self.y, self.parts = width, 0, []

    def text(self, x, text, weight="normal", color="#222", cut=None):
        text = str(text)
        if cut and len(text) * CHAR > cut:
            text = text[: int(cut / CHAR) - 1] + "…"
        self.parts.append(f'<text x="{x}" y="{self.y + 15}" font-weight="{weight}" fill="{color}">{html.escape(text)}</text>')

    def line(self, color="#fff"):
        self.parts.append(f'<rect x="0" y="{self.y}" width="{self.width}" height="{LINE}" fill="{color}"/>')

    def done(self):
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.y + 8}" font-family="monospace" font-size="13">'
        return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *self.parts, "</svg>", ""])


def table(flows):
    svg = Svg(LEFT + sum(width for _, width in COLUMNS))
    svg.line("#e8eef4")
    x = LEFT
    for title, width in COLUMNS:
        svg.text(x, title, "bold")
        x += width
    svg.y += LINE
    for number, flow in enumerate(flows):
        svg.line("#f8f8f8" if number % 2 else "#fff")
        rates = flow.get("throughput_bps") or [0]
        cells = (PROTOCOLS.get(flow.get("protocol"), "?"), end(flow, "src"), end(flow, "dst"), f"{flow['last'] - flow['first']} s",
                 amount(rates[-1], ("bps", "kbps", "Mbps", "Gbps")), amount(bytes_of(flow)), info(flow))
        x = LEFT
        for cell, (_, width) in zip(cells, COLUMNS):
            svg.text(x, cell, cut=width - 8)
            x += width
        svg.y += LINE
    return svg.done()


def page(flow):
    known = [
        ("Flow Peers [ Client / Server ]", f"{end(flow, 'src')}  ⇄  {end(flow, 'dst')}"),
        ("Protocol", PROTOCOLS.get(flow.get("protocol"), "?")),
        ("Client to / from Server Traffic", f"{amount(flow.get('in_bytes', 0))} / {amount(flow.get('out_bytes', 0))}"),
        ("Round Trip Time [ms]", f"client {flow.get('client_rtt_ms', 0):.3f}, server {flow.get('server_rtt_ms', 0):.3f}"),
        ("Retransmissions", f"{flow.get('retrans_in', 0)} / {flow.get('retrans_out', 0)}"),
    ]
    for side, title in (("src", "Client"), ("dst", "Server")):
        if flow.get(f"{side}_proc"):
            user = flow.get(f"{side}_user") or flow.get(f"{side}_uid")
            known.append((f"{title} Process", f"{flow[side + '_proc']} [pid {flow.get(side + '_pid')}, user {user}]"))
            known.append((f"{title} Parent Process", flow.get(f"{side}_father_proc", "")))
            known.append((f"{title} Package", flow.get(f"{side}_pkg", "")))
            known.append((f"{title} Container", flow.get(f"{side}_container", "")))
    rows = [(key, value) for key, value in flow.items() if " " in key or key == "ALPN"]
    svg = Svg(1200)
    for title, lines in (("Flow", known), ("Additional Flow Elements", rows)):
        svg.line("#e8eef4")
        svg.text(LEFT, title, "bold")
        svg.y += LINE
        for key, value in lines:
            if value not in ("", None):
                svg.text(LEFT, key, color="#555", cut=300)
                svg.text(LEFT + 310, value, cut=870)
                svg.y += LINE
    return svg.done()


def main(path, folder, port=None):
    with open(path) as file:
        flows = json.load(file)
    flows.sort(key=bytes_of, reverse=True)
    with open(f"{folder}/flows.svg", "w") as file:
        file.write(table(flows))
    chosen = [flow for flow in flows if port is None or flow.get("src_port") == int(port)]
    with open(f"{folder}/flow.svg", "w") as file:
        file.write(page(chosen[0]))


main(*sys.argv[1:])
