// Is what comes in an AsyncAPI document? Says what is wrong with it otherwise.
import { text } from "node:stream/consumers";
import { Parser } from "@asyncapi/parser";

const WARNING = 1; // and 0 is an error; above are hints, such as that there is a newer AsyncAPI
const { document, diagnostics } = await new Parser().parse(await text(process.stdin));
const wrong = diagnostics.filter(({ severity }) => severity <= WARNING);
for (const { code, path, message } of wrong) console.error(`${path.join("/") || "document"}: ${message} (${code})`);
if (!document || wrong.length) process.exit(1);
console.log(`asyncapi: ${document.allMessages().all().length} messages, ${document.allOperations().all().length} operations`);
