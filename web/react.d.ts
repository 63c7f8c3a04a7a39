/**
 * Connects while the component is mounted. It connects anew when the session, a token that is a string, the url, the transport or
 * `poison` changes, and not when a function changes: always the function of the last rendering is called.
 *
 * @template [T=any] the type of the payloads that are received
 * @param {Options<T>} options those of `connect`
 * @returns {{client: Client<T> | null, status: Status}} `client` is null until the component is mounted
 */
export function useBroker<T = any>(options: Options<T>): {
    client: Client<T> | null;
    status: Status;
};
/**
 * Reads a topic while the component is mounted.
 *
 * @template [T=any] the type of the payloads
 * @param {Client<any> | null} client
 * @param {string} topic
 * @param {(message: Message<T>) => any} handler always the one of the last rendering is called
 */
export function useTopic<T = any>(client: Client<any> | null, topic: string, handler: (message: Message<T>) => any): void;
export type Status = import("./client.js").Status;
export type Options<T> = import("./client.js").Options<T>;
export type Client<T> = import("./client.js").Client<T>;
export type Message<T> = import("./client.js").Message<T>;
