// Validates an AsyncAPI document by the official schema, of the package @asyncapi/specs, and the
// examples in it by their own schemas.
//
//     node built/asyncapi.js FILE

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { Ajv } from "ajv";
import addFormatsPlugin from "ajv-formats";

const addFormats = addFormatsPlugin.default;

const official = createRequire(import.meta.url)("@asyncapi/specs/schemas/3.0.0.json") as object;
const document = JSON.parse(readFileSync(process.argv[2] ?? "docs/asyncapi.json", "utf8"));

function check(what: string, ajv: Ajv, schema: object, value: unknown): void {
  const validate = ajv.compile(schema);
  if (!validate(value)) {
    for (const error of validate.errors ?? []) {
      console.error(`${what}${error.instancePath} ${error.message}`);
    }
    process.exitCode = 1;
  }
}

// A strict ajv refuses keywords that it does not know, and the official schema has some. It also
// brings its dialect's own schema, which is therefore not added here.
const lenient = () => {
  const ajv = new Ajv({ strict: false, logger: false, meta: false, validateSchema: false });
  addFormats(ajv);
  return ajv;
};
check("", lenient(), official, document);

for (const [name, message] of Object.entries<any>(document.components.messages)) {
  for (const example of message.examples ?? []) {
    for (const part of ["headers", "payload"]) {
      const schema = { ...message[part], components: document.components };
      check(`${name}: ${part} of its example`, lenient(), schema, example[part]);
    }
  }
}
