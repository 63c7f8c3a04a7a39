/**
 * Connects to a broker, and stays connected until `close`.
 *
 * @template [T=any] the type of the payloads that are received
 * @param {Options<T>} options
 * @returns {Client<T>}
 */
export function connect<T = any>(options: Options<T>): Client<T>;
/** A refusal by the broker. `code` is one of its error codes, like "mailbox_full". */
export class Refused extends Error {
    /**
     * @param {string} code
     * @param {string} message
     */
    constructor(code: string, message: string);
    code: string;
}
/** A connection to a broker for one session. Made by {@link connect}. @template [T=any] */
export class Client<T = any> {
    /** @param {Options<T>} options */
    constructor(options: Options<T>);
    /** The session that is read. Undefined until the broker has named the session of the token. */
    get session(): string | undefined;
    /** The current state and transport. */
    get status(): Status;
    /** How many sends have no answer yet. */
    get pendingCount(): number;
    /**
     * Sends a message. The promise is fulfilled when the message is stored, with its seq (none if it is volatile), or
     * rejected with {@link Refused}. Without a connection the message waits. A volatile message is rejected then.
     *
     * @param {Address} to
     * @param {any} payload any JSON value
     * @param {SendOptions} [options]
     * @returns {Promise<Sent>}
     */
    send(to: Address, payload: any, options?: SendOptions): Promise<Sent>;
    /**
     * Sends a request, and waits for its reply: the receiver calls `message.reply(payload)`. Rejects with {@link Refused}, whose `code` is
     * "timeout" if no reply came, or with the reason of the signal. It may be called, and awaited, in a handler.
     *
     * @template [P=any]
     * @param {Address} to a session, a user or a backend
     * @param {any} payload any JSON value
     * @param {RequestOptions} [options]
     * @returns {Promise<Reply<P>>}
     */
    request<P = any>(to: Address, payload: any, options?: RequestOptions): Promise<Reply<P>>;
    /**
     * Waits until everything that was sent before is answered or refused, and acknowledges what was handled. For a page that
     * is being left.
     */
    flush(): Promise<void>;
    /**
     * Reads a topic until the returned function is called. After a reconnect it goes on where it was.
     *
     * @template [P=any]
     * @param {string} topic
     * @param {(message: Message<P>) => any} handler
     * @param {{after?: number, presence?: (event: Presence) => void}} [options] `after` asks for what the topic's history holds
     *   after that seq. `presence` is called with those who read the topic, and whenever they change
     * @returns {() => void}
     */
    subscribe<P = any>(topic: string, handler: (message: Message<P>) => any, { after, presence }?: {
        after?: number;
        presence?: (event: Presence) => void;
    }): () => void;
    /**
     * Who reads a topic that is subscribed to with `presence`. Undefined while that is not known, and above 1,000 members.
     *
     * @param {string} topic
     * @returns {string[] | undefined}
     */
    presence(topic: string): string[] | undefined;
    /**
     * Chooses the transport: "websocket", "poll", or "auto" for WebSocket if it works.
     *
     * @param {Transport | "auto"} transport
     */
    use(transport: Transport | "auto"): void;
    /** Closes the connection until `resume`. Messages to this session wait at the broker. */
    pause(): void;
    /** Connects again after `pause`, and calls the handler again with a message that is held. */
    resume(): void;
    /** Closes the client. Sends without an answer are rejected. No handler is called any more. */
    close(): void;
    #private;
}
/**
 * `reply`: the
 *   `reply_to` of a request
 */
export type Address = {
    session: string;
} | {
    user: string;
} | {
    topic: string;
} | {
    backend: string;
} | {
    reply: string;
};
export type Message<T = any> = {
    /**
     * its position; absent when volatile
     */
    seq?: number | undefined;
    /**
     * the sender: a session in `open` mode, a user or a handle in `token` mode; absent if the
     * sender has no name
     */
    from?: string | undefined;
    /**
     * the topic; absent for messages to this session
     */
    topic?: string | undefined;
    /**
     * a backend sent it, with an API key; absent otherwise
     */
    backend?: true | undefined;
    /**
     * when it was accepted, in Unix milliseconds
     */
    ts: number;
    /**
     * what was sent
     */
    payload: T;
    /**
     * in a request: what its one answer is sent to
     */
    reply_to?: string | undefined;
    /**
     * in a request: sends its one answer
     */
    reply?: ((payload: any, options?: SendOptions) => Promise<Sent>) | undefined;
    type?: "message" | undefined;
};
/**
 * the answer to a request
 */
export type Reply<T = any> = {
    /**
     * the name of the request
     */
    id: string;
    /**
     * its position; absent when volatile
     */
    seq?: number | undefined;
    /**
     * who answered, as in a message
     */
    from?: string | undefined;
    /**
     * a backend answered; absent otherwise
     */
    backend?: true | undefined;
    /**
     * when it was accepted, in Unix milliseconds
     */
    ts: number;
    /**
     * what was answered
     */
    payload: T;
    type?: "reply" | undefined;
};
/**
 * what became of a message that was sent with `receipt: true`
 */
export type Receipt = {
    /**
     * the sender's name for it
     */
    id: string;
    state: "acknowledged" | "expired";
    /**
     * its position in the mailbox of the sender; none if it came past messages that wait for this page
     */
    seq?: number | undefined;
    /**
     * when that happened, in Unix milliseconds
     */
    ts: number;
};
/**
 * messages after `from`, up to and including `to`, are not coming
 */
export type Gap = {
    topic?: string | undefined;
    from: number;
    to: number;
    reason: "acknowledged" | "expired" | "epoch" | "lost";
};
/**
 * who reads a topic, and what has changed since the handler was called last
 */
export type Presence = {
    topic: string;
    /**
     * how many members the topic has
     */
    count: number;
    /**
     * at first, all members
     */
    joined: string[];
    left: string[];
    /**
     * all of them; absent if there are more than 1,000
     */
    members?: string[] | undefined;
};
export type State = "connecting" | "online" | "offline" | "closed";
export type Transport = "websocket" | "poll";
export type Status = {
    state: State;
    /**
     * what carries messages now
     */
    transport: Transport | null;
    /**
     * why the client is offline or closed
     */
    reason?: string | undefined;
    /**
     * what the broker says about itself
     */
    welcome?: Welcome | undefined;
};
export type Welcome = {
    epoch: string;
    /**
     * the session that is read
     */
    session?: string | undefined;
    /**
     * the user that the session belongs to, in `token` mode
     */
    user?: string | undefined;
    /**
     * the public name of the session, in `token` mode: others send to it
     */
    handle?: string | undefined;
    /**
     * everything up to here is acknowledged
     */
    seq?: number | undefined;
    durability?: string | undefined;
    heartbeat?: number | undefined;
    max_payload?: number | undefined;
    /**
     * for how many seconds a repeated send is recognised
     */
    dedup_window?: number | undefined;
    server?: string | undefined;
    /**
     * the node of a cluster that the connection is at
     */
    node?: string | undefined;
};
export type WebSocketClass = {
    new (address: string | URL, protocol?: string): WebSocket;
};
export type Options<T = any> = {
    /**
     * the session to read and to send as; a token may name it instead. In `token` mode its id is the proof
     * if the backend registered it with `"proof": true`
     */
    session?: string | undefined;
    /**
     * the proof. A function is called when the
     * client has no token, when its token was refused, and shortly before it expires
     */
    token?: string | (() => string | undefined | Promise<string | undefined>) | undefined;
    /**
     * the broker; by default the one that served this module
     */
    url?: string | URL | undefined;
    /**
     * called with each message to this session; may return a promise.
     * Without it messages are not acknowledged
     */
    onMessage?: ((message: Message<T>) => any) | undefined;
    /**
     * called with the receipt of a message sent with `receipt: true`
     */
    onReceipt?: ((receipt: Receipt) => any) | undefined;
    /**
     * called when the state or the transport changes
     */
    onStatus?: ((status: Status) => void) | undefined;
    onGap?: ((gap: Gap) => void) | undefined;
    /**
     * called when everything up to seq was acknowledged
     */
    onAck?: ((seq: number) => void) | undefined;
    /**
     * called with an error that no promise reports; with the
     * message, if its handler failed
     */
    onError?: ((error: Error, message?: Message<T> | Receipt) => void) | undefined;
    /**
     * what happens to a message whose handler failed five times: "skip" (the default)
     * acknowledges it and goes on, "hold" keeps it and everything behind it
     */
    poison?: "skip" | "hold" | undefined;
    /**
     * "auto" by default
     */
    transport?: "auto" | Transport | undefined;
    /**
     * the class to use where there is no global one, as in Node 20
     */
    WebSocket?: WebSocketClass | undefined;
};
export type SendOptions = {
    /**
     * your own name for the message; a send that is repeated with it is stored once
     */
    id?: string | undefined;
    /**
     * how many seconds it is kept unread
     */
    ttl?: number | undefined;
    /**
     * call `onReceipt` when the message is acknowledged or expires
     */
    receipt?: boolean | undefined;
    /**
     * store nothing, and reach only current readers
     */
    volatile?: boolean | undefined;
    /**
     * ends the waiting. What was transmitted already may be stored
     */
    signal?: AbortSignal | undefined;
};
export type RequestOptions = {
    /**
     * how long to wait for the reply, in milliseconds; 10,000 by default
     */
    timeout?: number | undefined;
    /**
     * ends the waiting
     */
    signal?: AbortSignal | undefined;
    /**
     * your own name for the request. Do not use it again
     */
    id?: string | undefined;
    /**
     * store nothing, and reach only current readers
     */
    volatile?: boolean | undefined;
};
/**
 * `sessions`: sent to a user, in how many mailboxes
 */
export type Sent = {
    id: string;
    seq?: number;
    sessions?: number;
};
/**
 * Messages on their way to one handler, in order.
 */
export type Entry = {
    /**
     * none for a position without a message
     */
    message?: any;
    /**
     * the position that is reached when the message is handled
     */
    seq?: number | undefined;
    epoch: string | null;
    /**
     * handled elsewhere: what to wait for
     */
    after?: Promise<any> | undefined;
};
/**
 * One call of `subscribe`.
 */
export type Subscription = {
    lane: Lane;
    /**
     * the newest seq in the lane; null for "from now on"
     */
    after: number | null;
};
/**
 * A topic that is read.
 */
export type Topic = {
    subscriptions: Set<Subscription>;
    /**
     * the epoch of the positions, null if it is not known
     */
    epoch: string | null;
    /**
     * the newest seq that was seen
     */
    newest: number | null;
    /**
     * while polling: the broker refused it
     */
    refused: boolean;
};
/**
 * a send without an answer
 */
export type Pending = {
    id: string;
    /**
     * the send as JSON
     */
    body: string;
    /**
     * of its body, in bytes
     */
    size: number;
    /**
     * the size of its payload
     */
    payload: number;
    volatile: boolean;
    /**
     * when it was transmitted first
     */
    first: {
        steady: number;
        wall: number;
    } | null;
    /**
     * it, or another one, closed the socket as too large: it goes alone
     */
    suspect: boolean;
    promise: Promise<Sent>;
    resolve: (value: Sent) => void;
    reject: (error: unknown) => void;
};
/**
 * what one client asks for
 */
export type PollItem = {
    session?: string | undefined;
    token?: string | undefined;
    after?: number | undefined;
    /**
     * `after` does not acknowledge
     */
    ack?: false | undefined;
    epoch?: string | undefined;
    wait: number;
    topics?: {
        topic: string;
        after?: number;
        epoch?: string;
        presence?: true;
    }[] | undefined;
};
/**
 * a poll of a tab
 */
export type SharedPoll = {
    item: PollItem;
    key: string;
    deliver: (result: any, reason?: string) => void;
};
export type AskedPoll = {
    by: string;
    heard: number;
    resolve: (answer: {
        result?: any;
        reason?: string;
    }) => void;
};
/**
 * Messages on their way to one handler, in order.
 *
 * @typedef {object} Entry
 * @property {any} [message] none for a position without a message
 * @property {number} [seq] the position that is reached when the message is handled
 * @property {string | null} epoch
 * @property {Promise<any>} [after] handled elsewhere: what to wait for
 */
/** A queue in front of one handler. */
declare class Lane {
    /**
     * @param {(entry: Entry) => Promise<boolean>} handle false keeps the message
     * @param {(entry: Entry) => void} [done]
     */
    constructor(handle: (entry: Entry) => Promise<boolean>, done?: (entry: Entry) => void);
    handle: (entry: Entry) => Promise<boolean>;
    done: (entry: Entry) => void;
    /** @param {Entry} entry */
    push(entry: Entry): void;
    get length(): number;
    get empty(): boolean;
    /** Tries again what is held. */
    retry(): void;
    /** Removes what this function does not keep. @param {(entry: Entry) => boolean} keep */
    filter(keep: (entry: Entry) => boolean): void;
    /** @returns {Promise<void>} */
    untilDrained(): Promise<void>;
    #private;
}
export {};
