// A stand-in of the x0 client: what it offers to other scripts, and the requests and reactions of the recordings
// (tests/fixtures/legacy). A classic script. `got` and `thrown` hold what the handler was called with.

/* global sysFactory */
window.got = [];
window.thrown = 0;
window.polls = 0;
window.stopped = false;
window.events = [];

function x0Call(url, body, done) {
  const request = new XMLHttpRequest();
  request.open("POST", `${url}?a__=${String(Math.random()).slice(2)}`);
  request.setRequestHeader("Content-Type", "application/json; charset=UTF-8");
  request.setRequestHeader("Accept", "application/json");
  request.setRequestHeader("Cache-Control", "max-age=0");
  request.setRequestHeader("Upgrade-Insecure-Requests", "1");
  request.onloadend = () => done(request);
  request.send(JSON.stringify(body));
}

var sysFactory = {
  SysSessionValue: new URLSearchParams(location.search).get("session"),
  SysSessionID: "SYS_SESSION",
  MsgServerGetURL: null,
  sysGlobalAsyncNotifyHandler: null,
};

function sysAsyncNotifyMsgHandler(MsgProcessing) {
  this.MsgProcessing = MsgProcessing;
}

sysAsyncNotifyMsgHandler.prototype.getMsg = function () {
  if (!this.MsgProcessing) return;
  window.polls++;
  const session = sysFactory.SysSessionValue;
  const body = { session_src: session, type: "GET", SessionData: { ID: sysFactory.SysSessionID, Value: session } };
  x0Call(sysFactory.MsgServerGetURL, body, (request) => this.callbackXMLRPCAsync(request));
};

/** Polls again at once after any 200 of JSON, and stops for good after anything else. */
sysAsyncNotifyMsgHandler.prototype.callbackXMLRPCAsync = function (request) {
  let answer;
  try {
    if (request.status !== 200) throw new Error(`status ${request.status}`);
    answer = JSON.parse(request.responseText);
  } catch {
    window.stopped = true;
    return;
  }
  try {
    for (const message of answer.messages ?? []) this.processMsg(message);
  } catch {
    // The rest of the answer is lost, as in the recordings.
  }
  this.getMsg();
};

sysAsyncNotifyMsgHandler.prototype.processMsg = function (message) {
  window.got.push(JSON.stringify(message));
  if (message["method-id"] === "set-data" && message["dst-object"] !== "FormlistExchangeData") {
    window.thrown++;
    throw new TypeError("there is no such object");
  }
  for (const event of message["fire-events"] ?? []) window.events.push(event);
};

function sysObjButton(events) {
  this.JSONConfig = { Attributes: { FireNetEvents: events } };
}

/** To a relative address, where it is lost. */
sysObjButton.prototype.fireNetEvents = function () {
  for (const [event, session] of Object.entries(this.JSONConfig.Attributes.FireNetEvents)) {
    const query = { SYS_SESSION: sysFactory.SysSessionValue, Type: "SET", DestinationSession: session, Payload: `SYS__NET_EVENT-${event}` };
    fetch(`python/MsgHandler.py?${new URLSearchParams(query)}`);
  }
};

function Init() {
  sysFactory.MsgServerGetURL = "http://x0-msg-server.x0.localnet:8080/python/MsgHandler.py";
  sysFactory.sysGlobalAsyncNotifyHandler = new sysAsyncNotifyMsgHandler(true);
  sysFactory.sysGlobalAsyncNotifyHandler.getMsg();
}

window.sendForm = (to, form) =>
  new Promise((done) => {
    const body = {
      RequestData: { FormlistSelectDstUser: { UserID: "user1", DstUserSession: to }, FormlistExchangeData: form },
      ServiceData: {},
      SessionData: { ID: sysFactory.SysSessionID, Value: sysFactory.SysSessionValue },
    };
    x0Call(sysFactory.MsgServerGetURL, body, (request) => done(request.responseText));
  });
