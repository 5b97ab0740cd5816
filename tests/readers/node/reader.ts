// Reads the examples with types that json-schema-to-typescript makes of the schemas, after ajv has
// validated them. Prints a line for each:
//   <file> <event|change|dead-letter> <action or kind> <owner>/<repository>#<number> <assignees>
//
//     node built/reader.js DOCS

import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { Ajv2020 } from "ajv/dist/2020.js";
import addFormatsPlugin from "ajv-formats";
import type { Change } from "./generated/change.js";
import type { IssueEvent } from "./generated/event.js";

const addFormats = addFormatsPlugin.default;

interface Message {
  subject: string;
  headers: Record<string, string>;
  payload?: unknown;
  payload_text?: string;
}

const docs = process.argv[2] ?? "docs";
const read = (...path: string[]): unknown => JSON.parse(readFileSync(join(docs, ...path), "utf8"));

const ajv = new Ajv2020({ allErrors: true, strict: true });
addFormats(ajv);
for (const [format, type] of [["int64", "number"], ["uint64", "number"], ["uint32", "number"]] as const) {
  ajv.addFormat(format, { type, validate: Number.isInteger });
}
ajv.addSchema([read("schema", "event.v1.json"), read("schema", "change.v1.json")] as object[]);

/** The payload, if it is valid by the schema of this name. */
function valid<T>(schema: string, payload: unknown): T {
  if (!ajv.validate(schema, payload)) {
    throw new Error(ajv.errorsText());
  }
  return payload as T;
}

function line(folder: string, message: Message): string {
  if (folder === "changes") {
    const change = valid<Change>(message.headers["ce-dataschema"] ?? "", message.payload);
    // A kind that is not known is skipped by a real reader.
    return `change ${change.kind} ${place(change)} ${change.assignees.join(",")}`;
  }
  const kind = folder === "events" ? "event" : "dead-letter";
  if (message.payload === undefined) {
    return `${kind} unreadable`;
  }
  const event = valid<IssueEvent>(message.headers["ce-dataschema"] ?? "", message.payload);
  const assignees = event.issue.assignees.map((user) => user.login);
  return `${kind} ${event.action} ${place(event)} ${assignees.join(",")}`;
}

function place(of: IssueEvent | Change): string {
  return `${of.repository.owner}/${of.repository.name}#${of.issue.number}`;
}

for (const folder of ["events", "changes", "dead-letters"]) {
  for (const file of readdirSync(join(docs, "examples/v1", folder)).sort()) {
    const message = read("examples/v1", folder, file) as Message;
    console.log(`${folder}/${file} ${line(folder, message)}`.trimEnd());
  }
}
