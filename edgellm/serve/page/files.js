// Files put into a message: texts, and pictures where the model sees.
const LARGEST = 1_000_000; // bytes of a text
const LARGEST_PICTURE = 8_000_000;

// A file as it goes into a message, {name, text} or {name, url}. Raises Error with words for the user.
export async function attached(file, model) {
  const name = file.name.replace(/[`\r\n]/g, "_");
  if (file.type.startsWith("image/") && file.type !== "image/svg+xml") {
    if (!model?.capabilities?.includes("vision"))
      throw new Error(`${name} is a picture, and this model reads text only.`);
    if (file.size > LARGEST_PICTURE) throw new Error(`${name} is larger than 8 MB.`);
    return { name, url: await asUrl(file) };
  }
  if (file.size > LARGEST) throw new Error(`${name} is larger than 1 MB.`);
  const data = new Uint8Array(await file.arrayBuffer());
  const text = decoded(data);
  if (text === null) throw new Error(`${name} is not a text file.`);
  return { name, text };
}

// The text of bytes: UTF-8, or UTF-16 that says so; null when they are none.
function decoded(data) {
  const utf16 =
    data[0] === 0xff && data[1] === 0xfe ? "utf-16le" : data[0] === 0xfe && data[1] === 0xff ? "utf-16be" : null;
  try {
    const text = new TextDecoder(utf16 ?? "utf-8", { fatal: true }).decode(data);
    return text.includes("\0") ? null : text;
  } catch {
    return null;
  }
}

const asUrl = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} could not be read.`));
    reader.readAsDataURL(file);
  });
