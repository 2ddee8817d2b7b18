// The greedy answer of transformers.js on an ONNX folder, beside edgellm's.
//
//   npm install --ignore-scripts @huggingface/transformers      (anywhere; run this file from there)
//   node transformers_js.mjs FOLDER "PROMPT" [TOKENS]
//
// Prints one JSON object: the ids of the prompt, as its own tokenizer makes them, and of the answer.

import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [folder, prompt, count = "32"] = process.argv.slice(2);
const require = createRequire(path.join(process.cwd(), "package.json"));
const entry = require.resolve("@huggingface/transformers");
const { AutoModelForCausalLM, AutoTokenizer, env } = await import(pathToFileURL(entry).href);

env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));
const name = path.basename(path.resolve(folder));
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name, { device: "cpu" });
const inputs = tokenizer(prompt, { add_special_tokens: true });
const output = await model.generate({ ...inputs, max_new_tokens: Number(count), do_sample: false });
const ids = Array.from(output.data, Number);
const size = inputs.input_ids.dims[1];
console.log(JSON.stringify({ prompt: ids.slice(0, size), answer: ids.slice(size) }));
