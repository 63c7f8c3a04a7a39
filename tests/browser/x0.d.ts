// What an x0 page offers to the scripts after its own.
interface X0Handler {
  MsgProcessing: boolean;
  getMsg(): unknown;
  processMsg(message: object): unknown;
}
declare var sysFactory: { SysSessionValue: unknown } | undefined;
declare var sysAsyncNotifyMsgHandler: { prototype: X0Handler } | undefined;
declare var sysObjButton: { prototype: { fireNetEvents(): unknown } } | undefined;
