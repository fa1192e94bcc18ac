// The page of a site's part: the log goes on by itself.

import { followLog } from "./panel.js";
import { showTimes } from "./times.js";

showTimes();
const log = document.querySelector("#log");
if (log) followLog(log, document.querySelector("#log-follow"));
