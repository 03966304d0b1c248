// Runs in a browser page, which sets `URL_OF_EVENTS`, `MIDDLE` and `LAST`: tells when the one value has come, and reads until the other
// comes; the browser reconnects as it sees fit.
const values = [];
let opened = 0;
const events = new EventSource(URL_OF_EVENTS);
events.onopen = () => { opened++; };
events.onerror = () => { if (events.readyState === EventSource.CLOSED) report({ error: `given up after ${values.length}` }); };
events.onmessage = (event) => {
  values.push(JSON.parse(event.data).value);
  if (values.at(-1) === MIDDLE) tell(MIDDLE);
  if (values.at(-1) !== LAST) return;
  events.close();
  report({ values, opened, last: event.lastEventId });
};
