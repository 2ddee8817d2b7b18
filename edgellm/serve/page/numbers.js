// Numbers as people read them.
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const count = (n) => plain.format(n);
export const known = (value) => value !== null && value !== undefined;

export function bytes(n) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let at = 0;
  while (n >= 1000 && at < units.length - 1) {
    n /= 1000;
    at += 1;
  }
  return `${plain.format(n)} ${units[at]}`;
}

export const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`);

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
