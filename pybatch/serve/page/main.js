// The page: asks the server what it does, and shows it.

import { loadBatches, startBatches } from "./batches.js";
import { loadModels, startChat } from "./chat.js";
import { ServerError } from "./client.js";
import { find, setText } from "./elements.js";
import { age } from "./format.js";
import { askForKey, startKeys } from "./key.js";
import { machine } from "./machine.js";
import { overview } from "./overview.js";
import { poll } from "./poll.js";
import { requests } from "./requests.js";
import { Stats } from "./stats.js";

const state = find("#state");
const notice = find("#notice");
const stats = new Stats();
const showOverview = overview();
const showRequests = requests();
const showMachine = machine();

let loaded = false;  // the models are known, of the server that answers now

function tell(name, kind, text = "") {
  setText(state, name);
  state.className = `pill ${kind}`;
  setText(notice, text);
  notice.hidden = !text;
}

function failed(error) {
  if (error instanceof ServerError && error.status === 401) {
    tell("Key needed", "bad");
    askForKey();
  } else if (error instanceof ServerError) {
    tell("Error", "bad", `The server answers with an error: ${error.message}`);
  } else {
    loaded = false;  // another server may come back
    tell("No answer", "bad", "The server does not answer. Trying again; what is below is old.");
  }
}

async function askStats() {
  if (!loaded) {
    setText(find("#model"), (await loadModels())[0]);
    loaded = true;
  }
  const seen = await stats.load();
  showOverview(seen);
  showRequests(seen);
  showMachine(seen.meters);
  setText(find("#about"), about(seen));
  tell("Live", "good");
}

function about({ now, server }) {
  return `pybatch ${server.version}, on ${server.device}, up for ${age(now - server.started)}`;
}

startKeys(() => {
  askNow();
  askBatches();
});
startChat(failed);
const askNow = poll(1, askStats, failed);
const askBatches = poll(2, loadBatches, failed);
startBatches(askBatches, failed);
