// The server's state: models, cache, memory, machine. Asked for anew while it is open.
import { Component, html, classes } from "./html.js";
import * as api from "./api.js";
import { Drawer } from "./drawer.js";
import { bytes, count, known, plural } from "./numbers.js";

const EVERY = 2500; // ms

export class Panel extends Component {
  state = { status: this.props.status, trouble: null };

  componentDidMount() {
    this.ask();
  }

  componentWillUnmount() {
    this.gone = true;
    clearTimeout(this.timer);
  }

  ask = async () => {
    try {
      this.setState({ status: await api.status(), trouble: null });
    } catch (error) {
      this.setState({ trouble: error.message });
    }
    if (!this.gone) this.timer = setTimeout(this.ask, EVERY);
  };

  render({ close }, { status, trouble }) {
    return html`
      <${Drawer} title="Server" close=${close}>
        ${trouble && html`<p class="fault">${trouble} What is below may be old.</p>`}
        ${status && html`
          <${Models} models=${status.models ?? []} />
          <${Cache} cache=${status.cache} />
          <${Memory} memory=${status.memory} />
          <${Machine} machine=${status.machine} />
          <${Requests} requests=${status.requests} version=${status.version} />
        `}
      <//>
    `;
  }
}

// Rows of [name, value] whose value is known.
const Rows = ({ rows }) => html`
  <dl class="rows">
    ${rows
      .filter(([, value]) => known(value) && value !== "")
      .map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
  </dl>
`;

const size = (n) => (known(n) ? bytes(n) : null);

const Meter = ({ label, value, most }) =>
  known(value) &&
  most > 0 &&
  html`
  <meter aria-label=${label} min="0" max=${most} value=${value}>${bytes(value)} of ${bytes(most)}</meter>
`;

function Models({ models }) {
  return html`
    <section>
      <h3>Models</h3>
      <ul class="models">
        ${models.map(
          (model) => html`
          <li key=${model.id}>
            <p><span class=${classes("dot", model.loaded && "on")} /><strong>${model.id}</strong></p>
            <p class="hint">${modelWords(model)}</p>
          </li>
        `,
        )}
      </ul>
      ${!models.length && html`<p class="hint">None.</p>`}
    </section>
  `;
}

function modelWords(model) {
  return [
    model.loaded ? "loaded" : "not loaded",
    model.pinned && "pinned",
    size(model.bytes),
    known(model.context_length) && `reads ${plural(model.context_length, "token")}`,
    model.engine && `${model.engine} engine`,
    model.capabilities?.join(", "),
  ]
    .filter(Boolean)
    .join(" · ");
}

const Cache = ({ cache }) =>
  cache &&
  html`
  <section>
    <h3>Cache</h3>
    <${Meter} label="Cache on disk" value=${cache.disk_bytes} most=${cache.disk_budget} />
    <${Rows} rows=${[
      ["On disk", size(cache.disk_bytes)],
      ["May take", size(cache.disk_budget)],
      ["Entries", known(cache.entries) ? count(cache.entries) : null],
    ]} />
  </section>
`;

const Memory = ({ memory }) =>
  memory &&
  html`
  <section>
    <h3>Memory</h3>
    <${Meter} label="Memory in use" value=${inUse(memory)} most=${memory.total} />
    <${Rows} rows=${[
      ["Total", size(memory.total)],
      ["Available", size(memory.available)],
      ["This server", size(memory.process)],
    ]} />
  </section>
`;

const inUse = ({ total, available }) => (known(total) && known(available) ? total - available : null);

const Machine = ({ machine }) =>
  machine &&
  html`
  <section>
    <h3>Machine</h3>
    <${Rows} rows=${[
      ["Processor", machine.cpu],
      ["Cores", machine.cores],
      ["Features", machine.features?.join(", ")],
    ]} />
  </section>
`;

const Requests = ({ requests, version }) => html`
  <section>
    <h3>Requests</h3>
    <${Rows} rows=${[
      ["Running", requests?.running],
      ["Waiting", requests?.waiting],
      ["edgellm", version],
    ]} />
  </section>
`;
